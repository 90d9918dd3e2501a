"""What a tracker is: a mirror of what runs leave in their folders, which stays the truth."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.record.result import Result, Row
from sae_sweeps.record.run import Run


class TrackedRun(ABC):
    """The tracker's side of one run; no method waits for a server or raises."""

    @abstractmethod
    def log(self, row: Row) -> None:
        """Mirror one row of metrics, over its tokens."""

    @abstractmethod
    def finish(self, result: Result | None) -> None:
        """End the run with its result; without one it has failed."""

    @abstractmethod
    def preempt(self) -> None:
        """Tell that the run is interrupted and will be resumed by another process."""


@dataclass(frozen=True)
class Summary:
    """What a sweep's report mirrors."""

    sweep: str
    folder: Path
    rows: list[dict[str, Any]]
    """One row per run, for a table."""
    frontier: str
    """Which curves' settings are on the frontier, in words."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]]
    """By measure, as `fvu`: a line per curve, as L0s and the measure there."""
    picture: Path


class Tracking(ABC):
    """An option of the `tracking` group: where runs are mirrored."""

    @abstractmethod
    def open(self, run: Run) -> TrackedRun:
        """Start mirroring `run`; a resumed one after its rows were cut back.

        The rows that it has then are mirrored too, if an earlier attempt was killed before. The
        mirror ends up with each row once, however often the run is interrupted.
        """

    @abstractmethod
    def summarise(self, summary: Summary) -> None:
        """Mirror the sweep's report, without waiting; repeating it renews it."""

    @abstractmethod
    def close(self, limit_s: float | None = None) -> None:
        """Wait until the mirrors have caught up: `limit_s` seconds, or a limit of their own."""
