"""No tracker: a run's own folder has everything."""

from typing import final

from sae_sweeps.record.result import Result, Row
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking


@final
class Off(Tracking, TrackedRun):
    """`tracking=off`: nothing is mirrored and nothing is written."""

    def open(self, run: Run) -> TrackedRun:
        """Give a run that mirrors nothing: itself."""
        return self

    def log(self, row: Row) -> None: ...
    def finish(self, result: Result | None) -> None: ...
    def preempt(self) -> None: ...
    def summarise(self, summary: Summary) -> None: ...
    def close(self, limit_s: float | None = None) -> None: ...
