"""The two commands, as processes."""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
RUN, PACK = HERE / "run", HERE / "pack"


def command(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """One of the two commands, with this interpreter."""
    given = {name: value for name, value in os.environ.items() if name not in ("OUT", "PYTHONPATH")}
    return subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        env={**given, "PYTHON": sys.executable, **more},
    )
