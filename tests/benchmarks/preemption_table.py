"""The table of what happens to jobs, and the figures it is made of."""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.preemption_triggers import TRIGGERS, Trigger

RESULTS = Path(__file__).parent / "results"
TIMES = 3


@dataclass(frozen=True)
class Found:
    """What a trigger did to one sweep."""

    restarts: int
    at_signal: list[int]
    """Tokens of each run when it happened."""
    resumed: list[int]
    """Where attempts went on, of all runs."""
    twice: int
    """Tokens trained twice, of all runs."""
    left_s: list[float]
    """From a signal to the exit, as the pack's log has it."""
    gone_s: float | None
    """From the trigger to the process's end."""
    retried: int
    """How often `sae-sweeps retry` was needed."""
    equal: bool
    """Whether weights, rows and figures are an undisturbed sweep's."""


HEAD = (
    "Trigger",
    "Job restarts",
    "Retries",
    "Tokens at the signal, each run",
    "Continued from, each run",
    "Tokens trained twice, both",
    "Signal to exit, s",
    "Trigger to process gone, s",
    "Equal to the undisturbed sweep",
    "Stock launcher",
)
INTRO = f"""# What happens to a job, and what it costs

`python -m tests.benchmarks.preemption`, on a local SLURM 22.05: {TIMES} sweeps per trigger at the
same time, a line each; a job has two runs and a node of its own. The machine has two cores for all
of it, which times suffer from. A batch has 1024 tokens. Where no warning comes, checkpoints are
written every 0.12 s. "Signal to exit" is what the pack's log says; until the process is gone the
interpreter ends too, and with a preemption SLURM's scheduler has its turn before the signal. The
last column is what the launcher of hydra-submitit-launcher 1.2.0 makes of the same trigger.
"""


def keep(name: str, found: list[Found]) -> None:
    """Put a trigger's figures among those kept, and write the table."""
    path = RESULTS / "preemption.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = [asdict(one) for one in found]
    kept = {each.name: kept[each.name] for each in TRIGGERS if each.name in kept}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    write(kept)


def write(kept: dict[str, Any]) -> None:
    """Write the table of what is kept."""
    lines = [row(HEAD), row(["---"] * len(HEAD))]
    lines += [line(each, kept[each.name]) for each in TRIGGERS if each.name in kept]
    (RESULTS / "preemption.md").write_text(INTRO + "\n" + "\n".join(lines) + "\n")


def line(trigger: Trigger, found: list[dict[str, Any]]) -> str:
    """A trigger's row of the table."""

    def every(name: str) -> list[Any]:
        return [one[name] for one in found]

    equal = sum(every("equal"))
    return row(
        [
            trigger.name,
            lines_of(every("restarts")),
            lines_of(map(int, every("retried"))),
            lines_of(map(commas, every("at_signal"))),
            lines_of(map(commas, every("resumed"))),
            lines_of(every("twice")),
            lines_of(map(commas, every("left_s"))),
            lines_of("-" if seconds is None else seconds for seconds in every("gone_s")),
            f"{'yes' if equal == len(found) else 'no'}, {equal} of {len(found)}",
            trigger.stock,
        ]
    )


def row(cells: Iterable[str]) -> str:
    """A row of the table."""
    return f"| {' | '.join(cells)} |"


def lines_of(values: Iterable[object]) -> str:
    """What the sweeps had, beside each other."""
    return "<br>".join(map(str, values))


def commas(values: Iterable[object]) -> str:
    """Several figures of one sweep."""
    return ", ".join(map(str, values)) or "-"
