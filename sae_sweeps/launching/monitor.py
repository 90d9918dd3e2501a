"""Follows a sweep that others train, through its files, until nothing more will happen."""

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path

from sae_sweeps.launching.progress import Display
from sae_sweeps.record import status
from sae_sweeps.record.status import RunStatus, SweepStatus

EVERY_S = 10.0
SETTLE_S = 30.0
"""How long a job's lost run must stay lost: on a network disk results may show up late."""
PATIENCE_S = 600.0
"""How long SLURM may be out of reach before its jobs are judged by their files alone."""
SLICE_S = 0.5
ROW_STATUS = {"running": "training", "done": "finished"}
"""What a display calls states, where it has another word."""


def watch(
    folder: Path,
    display: Display,
    names: Collection[str] | None = None,
    every_s: float = EVERY_S,
    timeout_s: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
) -> SweepStatus:
    """Show how a sweep goes until it is over; its last status, with all of its runs.

    `names` are the runs to look at, all by default. When `stop` says so, watching ends after one
    more look; a launcher that holds the sweep's lock itself needs it, since as long as it is held,
    runs that did not begin count as pending.

    Raises:
        ConfigError: for a folder that is no sweep's.
        TimeoutError: if the sweep is not over after `timeout_s` seconds; one line.
    """
    watched = Watched(display)
    begun = calm_since = time.monotonic()
    while True:
        stopping = stop()
        now = time.monotonic()
        found = status.read(folder)
        runs = [run for run in found.runs if names is None or run.name in names]
        watched.feed(runs, found.problem)
        if any(run.state in status.UNDER_WAY for run in runs):
            calm_since = now
        if stopping or now - calm_since >= _calm(runs, found.problem):
            watched.end(runs)
            return found
        left = begun + timeout_s - now
        if left <= 0:
            raise TimeoutError(f"{found.name} is not over: {tell(runs)}")
        _pause(min(every_s, left), stop)


def tell(runs: Collection[RunStatus]) -> str:
    """Count the runs that are not done: `8 running, 4 pending`."""
    counts = {state: sum(run.state == state for run in runs) for state in status.STATES[1:]}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _calm(runs: Collection[RunStatus], problem: str) -> float:
    """Say for how many seconds nothing must have been under way for the sweep to be over."""
    if any(run.state in status.UNDER_WAY for run in runs):
        return math.inf
    if not any(run.state == "lost" and run.job for run in runs):
        return 0.0
    return PATIENCE_S if problem else SETTLE_S


def _pause(seconds: float, stop: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not stop():
        time.sleep(min(left, SLICE_S))


class Watched:
    """Tells a display what changed between two looks."""

    def __init__(self, display: Display) -> None:
        self.display = display
        self.last: list[RunStatus] = []
        self.ended: set[int] = set()
        self.text = ""

    def feed(self, runs: list[RunStatus], problem: str) -> None:
        """Show the runs' present states, which come in the same order each time."""
        display = self.display
        if not self.last:
            display.started(sum(run.total_tokens for run in runs), [run.title for run in runs])
        before = [run.tokens for run in self.last] or [0] * len(runs)
        count = display.advance if self.last else display.resumed
        for index, run in enumerate(runs):
            if run.tokens != before[index]:
                count(index, run.tokens - before[index])
            figures = {"l0": run.l0, "fvu": run.fvu}
            display.metrics(index, {k: v for k, v in figures.items() if v is not None})
            with display.lock:
                display.rows[index].status = ROW_STATUS.get(run.state, run.state)
        self.last = runs
        self._end(runs, ("done", "failed"))
        text = problem or tell(runs) or "done"
        if text != self.text:
            self.text = text
            display.stage(text)

    def end(self, runs: list[RunStatus]) -> None:
        """End the rows of lost runs too, which will not come back."""
        self._end(runs, ("lost",))

    def _end(self, runs: list[RunStatus], states: Collection[str]) -> None:
        for index, run in enumerate(runs):
            if run.state in states and index not in self.ended:
                self.ended.add(index)
                self.display.finished(index, ROW_STATUS.get(run.state, "failed"))
