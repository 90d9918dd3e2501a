"""Which code runs, as far as this copy of the repository tells."""

import subprocess
from contextlib import suppress
from typing import Any

from tests.support.places import ROOT


def checkout() -> dict[str, Any]:
    """The commit, and whether there are changes beside it; nothing where git knows of none."""
    if not (ROOT / ".git").exists():  # a copy may have been made without
        return {}
    with suppress(OSError, subprocess.SubprocessError):
        commit = _git("rev-parse", "HEAD").strip()
        return {"commit": commit, "edited": bool(_git("status", "--porcelain").strip())}
    return {}


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout
