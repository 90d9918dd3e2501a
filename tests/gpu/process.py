"""A part's process: what it prints is kept, whatever becomes of it."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from tests.support.places import ROOT

TAIL = 2_000
"""Characters of what went wrong that are kept."""
LEAVING_S = 10
"""What a killed process may take to be gone."""
FEW = 5
"""Lines kept that are no figures."""

DONE, IN_PART, FAILED, OVER, SKIPPED = (
    *("done", "done in part", "failed", "over its limit", "no time left"),
)
"""What became of a part; of one that is done in part, rows tell what failed."""


def skipped(name: str, limit_s: float) -> dict[str, Any]:
    """What is told of a part that was not begun."""
    return {"name": name, "state": SKIPPED, "seconds": 0.0, "limit_s": limit_s, "figures": []}


def run(
    name: str, command: Sequence[str], limit_s: float, environment: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """Run a part's command for at most so long, with files in `folder`; what became of it."""
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    began = time.monotonic()
    with out.open("wb") as stdout, err.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=ROOT,
            env=environment,
            process_group=0,
        )
        try:
            code = process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:  # also where somebody ends this process: nothing goes on behind its back
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a device that hangs may hold it
                process.wait(timeout=LEAVING_S)
    figures, rubbish = figures_of(out.read_text(encoding="utf-8", errors="replace"))
    state = OVER if code is None else FAILED if code else DONE
    if state == DONE and any("error" in row for row in figures):
        state = IN_PART
    told: dict[str, Any] = {"name": name, "state": state, "limit_s": limit_s}
    told |= {"seconds": round(time.monotonic() - began, 2), "figures": figures}
    if rubbish:
        told["not_figures"] = rubbish[:FEW]
    if state in (FAILED, OVER):
        errors = err.read_text(encoding="utf-8", errors="replace")[-TAIL:]
        told["error"] = f"exit code {code}\n{errors}" if code else errors
    return told


def figures_of(text: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows that a part printed, a JSON object a line, and the other lines."""
    rows = list[dict[str, Any]]()
    others = list[str]()
    for line in filter(str.strip, text.splitlines()):
        try:
            row = json.loads(line)
        except ValueError:  # the last line of a killed process may be half a one
            row = None
        if isinstance(row, dict):
            rows.append(cast("dict[str, Any]", row))
        else:
            others.append(line[:TAIL])
    return rows, others
