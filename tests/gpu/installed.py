"""The wheels that lie beside tests/gpu/run, installed without a network."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from .wheels import PACKED

KINDS = ("ours", "peers")


class Lacking(Exception):
    """Says in one line what is not there, and what to do."""


def packed(wheels: Path) -> dict[str, Any]:
    """What is told of the wheels.

    Raises:
        Lacking: there are none.
    """
    try:
        return json.loads((wheels / PACKED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        text = f"no wheels in {wheels}: run tests/gpu/pack where there is a network, and bring them"
        raise Lacking(f"{text} along.") from None


def installed(wheels: Path, home: Path) -> dict[str, Path]:
    """Install both kinds of wheels, each into a folder of `home`; these folders.

    Raises:
        Lacking: pip is not there, or cannot.
    """
    folders = {kind: home / kind for kind in KINDS}
    for kind, folder in folders.items():
        found = sorted(map(str, (wheels / kind).glob("*.whl")))
        if not found:
            raise Lacking(f"no wheels in {wheels / kind}: run tests/gpu/pack again.")
        command = [
            *(sys.executable, "-m", "pip", "--isolated", "install", "--quiet", "--no-index"),
            *("--no-deps", "--no-compile", "--no-cache-dir", "--disable-pip-version-check"),
            *("--target", str(folder), *found),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise Lacking(f"pip cannot install the wheels in {wheels / kind}: {lines[-1]}")
    return folders
