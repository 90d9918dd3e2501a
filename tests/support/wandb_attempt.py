"""One attempt at training a tracked run, as a process of its own that a test may kill.

Does to the run's files and to the tracker what a member of a pack does: cuts `metrics.jsonl` back
to the checkpoint, opens the tracker, logs a row now and then, and leaves on SIGTERM.

Its words: SWEEP MODE CHECKPOINT ROWS SECONDS_PER_ROW WIDTH
"""

import signal
import sys
import time
from pathlib import Path
from typing import Any

from sae_sweeps.record.result import Result, Row
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.wandb import session
from sae_sweeps.tracking.wandb.tracker import Wandb
from tests.support.fabricate import config

CHOICES = {"architecture": "relu", "allocator": "none", "aux_loss": "none"}
STEP = 4096


def row(number: int, width: int) -> Row:
    """The row of this number, from 1, the same in every attempt."""
    extra = {f"train/{key}": number / (key + 3) for key in range(width)}
    return Row(STEP * number, extra)


def run_in(sweep: Path) -> Run:
    """The one run of the sweep."""
    return Run(
        "relu-01234567", sweep.name, sweep / "runs" / "relu-01234567", config(0), CHOICES, []
    )


def cut(run: Run, checkpoint: int) -> None:
    """Leave the rows that the checkpoint has: those up to this number."""
    path = run.folder / "metrics.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("".join(f"{line}\n" for line in lines[:checkpoint]))


def attempt(sweep: Path, mode: Any, checkpoint: int, rows: int, pause: float, width: int) -> bool:
    """Train from `checkpoint` to the end, and say whether it came to that."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    run = run_in(sweep)
    cut(run, checkpoint)
    tracking = Wandb(project="saes", entity="lab", mode=mode, tags=[])
    tracked = tracking.open(run)
    with (run.folder / "metrics.jsonl").open("a", buffering=1) as file:
        for number in range(checkpoint + 1, rows + 1):
            if asked:
                tracked.preempt()
                tracking.close(limit_s=2.0)
                return False
            line = row(number, width)
            file.write(f"{line.line}\n")
            tracked.log(line)
            time.sleep(pause)
    tracked.finish(
        Result(
            label=run.label,
            choices=run.choices,
            config=run.config,
            tokens=STEP * rows,
            metrics={"l0": 3.0},
        )
    )
    tracking.close()
    return True


def main() -> int:
    """Run one attempt as a command."""
    session.FIRST_SENDS_EVERY_S = 1.0  # the least that W&B takes
    folder, mode, checkpoint, rows, pause, width = sys.argv[1:]
    ended = attempt(Path(folder), mode, int(checkpoint), int(rows), float(pause), int(width))
    return 0 if ended else 1
