"""The W&B runs whose logs lie in a sweep's folder, and what of them is to be uploaded."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.system import files
from sae_sweeps.tracking.wandb import offline, places
from sae_sweeps.tracking.wandb.offline import Content
from sae_sweeps.tracking.wandb.server import W_AND_B_RUN, Served

RECENT_S = 60.0
"""Of an upload interrupted so shortly ago the server may still be taking in rows."""


class CannotUpload(Exception):
    """Why a run is left alone."""


@dataclass
class Pending:
    """A W&B run and its logs, oldest first."""

    id: str
    logs: list[Content]
    folders: dict[Path, Content] = field(default_factory=dict[Path, Content])
    """What is uploaded now: a log's own folder, or that of its rest."""
    tried: dict[Path, Content] = field(default_factory=dict[Path, Content])
    """All that was uploaded in this way, or was meant to be."""

    @property
    def where(self) -> W_AND_B_RUN:
        """Entity, project and id."""
        return self.logs[-1].run

    @property
    def settled(self) -> bool:
        """Whether all of it was uploaded before, by W&B's marks."""
        return all(log.fragment.settled for log in self.logs)

    @property
    def tried_recently(self) -> bool:
        """Whether an upload was interrupted a moment ago."""
        marks = [m for log in self.logs for m in log.fragment.path.parent.glob("*.sync*")]
        changed = [mark.stat().st_mtime for mark in marks]
        return not self.settled and max(changed, default=0.0) > time.time() - RECENT_S

    def begins(self) -> list[int]:
        """Give how many rows come before each log, and in the end all."""
        numbers = [0]
        for log in self.logs:
            # Logs before it may be set aside (online), or cleaned away; else counting is safer, as
            # W&B goes by the run's summary too, which may be ahead of its rows.
            if log.before is not None and (log.online or len(numbers) == 1):
                numbers[-1] = log.before
            numbers.append(numbers[-1] + log.rows)
        return numbers

    @property
    def rows(self) -> int:
        """How many rows the server must have in the end."""
        return self.begins()[-1]

    def plan(self, served: Served | None) -> None:
        """Choose what to upload, given what the server has.

        Raises:
            CannotUpload: if rows would be doubled or lost, or might be.
        """
        unsettled = [
            (log, begin)
            for log, begin in zip(self.logs, self.begins(), strict=False)
            if not log.fragment.settled
        ]
        if served is not None:
            self._check(served, [begin for _, begin in unsettled])
        elif any(log.fragment.partly_sent for log, _ in unsettled):
            raise CannotUpload("the server may have a part, and does not tell how much")
        self.folders = {}
        for log, begin in unsettled:
            sent = min(max(served.rows - begin, 0), log.rows) if served else 0
            anew = sent or log.moved or log.fragment.partly_sent
            folder = offline.rest(log.fragment, sent) if anew else log.fragment.path.parent
            self.folders[folder] = log
            offline.doubt(log.fragment)
        self.tried |= self.folders

    def _check(self, served: Served, begins: list[int]) -> None:
        figures = f"the server has {served.rows} of {self.rows} rows"
        if not begins:
            return
        if served.rows < begins[0]:
            raise CannotUpload(f"{figures}, fewer than were uploaded before")
        if served.rows > self.rows:
            raise CannotUpload(f"{figures}, so that some are not from here")
        if served.tokens and served.tokens != self._tokens_at(served.rows - 1):
            raise CannotUpload(f"{figures}, and they are not the first ones")

    def _tokens_at(self, row: int) -> int:
        for log, begin in zip(self.logs, self.begins(), strict=False):
            if begin <= row < begin + log.rows:
                return offline.tokens_at(log.fragment.path, row - begin)
        return 0

    def lost(self) -> list[str]:
        """Give the files of tables that are nowhere to be found; W&B leaves such tables out."""
        named = [(log.fragment, name) for log in self.tried.values() for name in log.moved]
        return [name for fragment, name in named if not offline.present(fragment, name).exists()]

    def unmarked(self) -> list[Path]:
        """Give the folders that W&B has not marked as uploaded."""
        return [folder for folder in self.folders if not list(folder.glob("*.synced"))]

    def settle(self, good: bool) -> None:
        """Note whether what was uploaded is there, so that a repetition goes on from that."""
        for folder, log in self.tried.items():
            if good:
                offline.trust(log.fragment)
                if folder != log.fragment.path.parent:
                    offline.mark_uploaded(log.fragment.path)


def at_work(folder: Path, running: set[str]) -> set[str]:
    """Give the W&B ids that processes may be writing, on this machine or another one.

    Args:
        folder: the sweep's.
        running: names of the sweep's runs that are at work.
    """
    sweep = SweepFolder(folder)
    held = {run.path for run in sweep.runs if files.is_locked(run.lock)}
    held |= {sweep.run(name).path for name in running}
    if files.is_locked(sweep.lock):
        held.add(folder)  # a launch, which ends with the summary
    busy = {id for path in held if (id := places.id_of(path))}
    return busy | {id_of(path) for path in offline.being_written(logs(folder))}


def logs(folder: Path) -> list[Path]:
    """Give W&B's logs of a sweep, less those set aside."""
    return sorted(places.logs_of(folder).glob("*run-*/run-*.wandb"))


def id_of(log: Path) -> str:
    """Tell which W&B run a log is of."""
    return log.stem.removeprefix("run-")


def base_of(id: str) -> str:
    """Tell which run a run apart repeats; any other one is its own."""
    return re.sub(r"-offline\d+$", "", id)


def not_told_elsewhere(runs: Sequence[Pending]) -> list[Pending]:
    """Leave out runs that a newer one, begun apart, tells from the beginning."""
    newest: dict[str, float] = {}
    for run in runs:
        base = base_of(run.id)
        newest[base] = max(newest.get(base, 0.0), run.logs[-1].started)
    return [run for run in runs if run.settled or run.logs[-1].started == newest[base_of(run.id)]]
