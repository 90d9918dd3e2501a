"""No tracker: a run's own folder has everything."""

from collections.abc import Mapping
from typing import Any, final

from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking


@final
class Off(Tracking, TrackedRun):
    """`tracking=off`: nothing is mirrored and nothing is written."""

    def open(self, run: Run) -> TrackedRun:
        """Give a run that mirrors nothing: itself."""
        return self

    def log(self, row: Mapping[str, float | int]) -> None: ...
    def finish(self, summary: Mapping[str, Any], failed: bool) -> None: ...
    def preempt(self) -> None: ...
    def summarise(self, summary: Summary) -> None: ...
    def close(self, limit_s: float | None = None) -> None: ...
