"""Uploads to W&B what lies offline in a sweep's folder, each row once, and asks the server for it.

`wandb sync` does the uploading. What it says of itself is not relied on, measured with wandb 0.31:
it marks a run as uploaded whose rows the server refused, it repeats all rows of an upload that was
interrupted, and it ends with exit code 0 whatever happened. So the server is asked how many rows of
each run it has, before and after; what it has already is left out of what is uploaded. In the end,
what W&B's logs lack of a run that is over comes from the run's own folder.
"""

import shutil
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import final

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.record.run import Run
from sae_sweeps.system.terminal import Terminal
from sae_sweeps.tracking.wandb import completing, offline
from sae_sweeps.tracking.wandb.offline import Content
from sae_sweeps.tracking.wandb.pending import (
    CannotUpload,
    Pending,
    at_work,
    base_of,
    id_of,
    logs,
    not_told_elsewhere,
)
from sae_sweeps.tracking.wandb.places import logs_of
from sae_sweeps.tracking.wandb.server import W_AND_B_RUN, Served, Server
from sae_sweeps.tracking.wandb.uploading import alone, errors, uploading

VERIFY_LIMIT_S = 30.0
"""The server may take in rows some time after it has accepted them."""
ASK_EVERY_S = 1.0
LOOK_EVERY_S, PROBE_EVERY_S, STALL_LIMIT_S = 0.2, 10.0, 120.0


@dataclass
class Outcome:
    """What became of a sweep's W&B runs."""

    uploaded: set[str] = field(default_factory=set[str])
    there: set[str] = field(default_factory=set[str])
    left: set[str] = field(default_factory=set[str])
    unverified: set[str] = field(default_factory=set[str])
    """Of those uploaded or there."""
    completed: set[str] = field(default_factory=set[str])
    """From the runs' own folders; of those uploaded or there, if they had been told at all."""
    failed: dict[str, str] = field(default_factory=dict[str, str])
    """Why."""

    def line(self) -> str:
        """Say it in one line."""
        good = {"uploaded": self.uploaded - self.completed}
        good["there already"] = self.there - self.completed
        good["completed from the runs' folders"] = self.completed
        good["still written and left for later"] = self.left
        counts = {what: len(ids - set(self.failed)) for what, ids in good.items()}
        parts = [f"{count} {what}" for what, count in counts.items() if count]
        parts += [f"{len(self.failed)} failed"] if self.failed else []
        unsure = self.unverified - set(self.failed)
        parts += [f"{len(unsure)} not verified: the server does not tell"] if unsure else []
        return f"W&B runs: {', '.join(parts) or 'none'}"


@contextmanager
def bar(name: str) -> Generator[Callable[[int, int], None]]:
    """Show how many W&B runs of a sweep are uploaded, on a terminal."""
    console = Terminal(stderr=True)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as p:
        task = p.add_task(f"uploading {name}", total=None)
        yield lambda done, total: p.update(task, completed=done, total=total)


def sync(
    folder: Path,
    running: set[str],
    over: Sequence[Run],
    server: Server,
    advance: Callable[[int, int], None],
) -> Outcome:
    """Upload what lies offline in a sweep's `wandb/`, and see whether it has arrived.

    A log that a kill tore is mended, and one without a record set aside. What W&B was never told of
    a run that is over, it is told now. Runs that somebody is still writing are left for later. It
    can be interrupted and repeated at any time.

    Args:
        folder: the sweep's.
        running: names of the sweep's runs that are at work.
        over: the sweep's runs that have a result or have failed.
        server: whom to upload to.
        advance: told from time to time how many W&B runs are uploaded, and of how many.

    Raises:
        ConfigError: if another process is uploading the sweep.
    """
    with alone(logs_of(folder)) as lock:
        return _Sync(folder, server, lock, advance).run(running, over)


@final
class _Sync:
    """One upload of one sweep."""

    def __init__(
        self, folder: Path, server: Server, lock: int, advance: Callable[[int, int], None]
    ) -> None:
        self.folder, self.server, self.lock, self.advance = folder, server, lock, advance
        self.outcome = Outcome()
        self.failed = self.outcome.failed
        self.unlike = set[str]()  # those whose logs do not go on where the server's rows end
        self.said: dict[str, str] = {}

    def run(self, running: set[str], over: Sequence[Run]) -> Outcome:
        """Upload what is to be uploaded, ask for all of it, and complete what is over."""
        ids = {id: run for run in over if (id := completing.id_of(run))}
        self._clear()
        runs = self._runs(running)
        todo = [run for run in runs if not run.settled]
        self.outcome.uploaded = {run.id for run in todo}
        self.outcome.there = {run.id for run in runs} - self.outcome.uploaded
        good = set[str]()
        try:
            self._upload_all(todo)
            self._verify([run for run in runs if run.id not in self.failed])
            good = self.outcome.uploaded - set(self.failed)
        finally:
            for run in todo:
                run.settle(good=run.id in good)
            self._clear()
        self._complete(ids)
        return self.outcome

    def _complete(self, ids: dict[str, Run]) -> None:
        """Tell W&B what it lacks of runs that are over, by their W&B ids."""
        for id in self.outcome.left | set(self.failed):
            if not (id in self.unlike and id in ids and self._goes_on(ids[id], id)):
                ids.pop(base_of(id), None)
        lacking = self._lacking(ids)
        if not lacking:
            return
        completing.complete([ids[id] for id in lacking])
        self.outcome.completed = lacking
        still = self._lacking({id: ids[id] for id in lacking})
        for id in lacking - still:
            self.failed.pop(id, None)
        for id in still:
            self.failed[id] = "the server did not take what its folder has and W&B's log lacks"

    def _goes_on(self, run: Run, id: str) -> bool:
        """Whether a run's own folder goes on where the server's rows end, if W&B's log does not."""
        where = completing.place(run, id)
        served, rows = self.server.rows([where])[where], run.files.rows()
        if served is None or not 0 < served.rows <= len(rows):
            return False
        return rows[served.rows - 1].tokens == served.tokens

    def _lacking(self, runs: Mapping[str, Run]) -> set[str]:
        """Give the W&B ids of those that the server does not have whole, as themselves or apart."""
        told: dict[str, list[Content]] = {id: [] for id in runs}
        for path in logs(self.folder):
            id = base_of(id_of(path))
            if id in told and (fragment := offline.read(path)).settled:
                told[id].append(offline.content(fragment))
        places = {id: {log.run for log in told[id]} for id in runs}
        for id, run in runs.items():
            places[id].add(completing.place(run, id))
        served = self.server.rows(where for several in places.values() for where in several)
        rows = {id: [served[where] for where in several] for id, several in places.items()}
        counts = {id: max((s.rows for s in found if s), default=None) for id, found in rows.items()}
        return {id for id in runs if not completing.is_whole(runs[id], told[id], counts[id])}

    def _clear(self) -> None:
        shutil.rmtree(logs_of(self.folder) / offline.REST, ignore_errors=True)

    def _upload_all(self, todo: list[Pending]) -> None:
        stuck = self._upload(todo, 0, len(todo))
        if len(todo) > 1:  # one log that W&B cannot read may have kept all from being uploaded
            for number, run in enumerate(stuck, len(todo) - len(stuck)):
                self._upload([run], number, len(todo))
        for run in todo:
            why = "`wandb sync` did not come to its end" if run.unmarked() else ""
            if lost := run.lost():
                why = f"{len(lost)} files of its tables are gone, as {lost[0]}"
            if why := self.said.get(run.id, why):
                self.failed.setdefault(run.id, why)

    def _runs(self, running: set[str]) -> list[Pending]:
        """Read the logs that nobody writes, by W&B run."""
        busy = {base_of(id) for id in at_work(self.folder, running)}
        runs: dict[W_AND_B_RUN, Pending] = {}
        for path in logs(self.folder):
            id = id_of(path)
            if base_of(id) in busy:
                self.outcome.left.add(id)
                continue
            with self._reporting(id):
                fragment = offline.read(path)
                offline.mend(fragment)
                if fragment.begun:
                    log = offline.content(fragment)
                    runs.setdefault(log.run, Pending(id, [])).logs.append(log)
        for run in runs.values():
            run.logs.sort(key=lambda log: log.started)
        return not_told_elsewhere([run for run in runs.values() if run.id not in self.failed])

    def _upload(self, runs: list[Pending], before: int, total: int) -> list[Pending]:
        """Upload some runs; gives those of which W&B has not marked all as uploaded."""
        ready = list[Pending]()
        served = self._served(runs)
        for run in runs:
            with self._reporting(run.id):
                run.plan(served[run.where])
                ready.append(run)
        for run in runs:
            self.said.pop(run.id, None)
        if not ready:
            return []
        folders = [folder for run in ready for folder in run.folders]
        with uploading(logs_of(self.folder), folders, self.lock) as (process, output):
            self._watch(process, ready, before, total)
            self.said |= errors(output, [run.id for run in ready])
        return [run for run in ready if run.unmarked()]

    def _watch(self, process: Popen[bytes], runs: list[Pending], before: int, total: int) -> None:
        """Wait for `wandb sync`, which tries for a week; not for long if the server takes nothing.

        Raises:
            ConfigError: in that case.
        """
        known, since = None, time.monotonic()
        asked = since
        while process.poll() is None:
            open_ = [run for run in runs if run.unmarked()]
            self.advance(before + len(runs) - len(open_), total)
            time.sleep(LOOK_EVERY_S)
            if time.monotonic() < asked + PROBE_EVERY_S:
                continue
            now, asked = (len(open_), self.server.rows(r.where for r in open_)), time.monotonic()
            if now != known:
                known, since = now, asked
            elif asked > since + STALL_LIMIT_S:
                text = f"W&B: {self.server.url} has taken nothing for {STALL_LIMIT_S:.0f} s"
                raise ConfigError(f"{text}; what is uploaded stays, so repeat the command later.")

    def _served(self, runs: list[Pending]) -> dict[W_AND_B_RUN, Served | None]:
        """Ask the server, and again until it has taken in what it has accepted."""
        served = self.server.rows(run.where for run in runs)
        while recent := [run for run in runs if run.tried_recently and served[run.where]]:
            time.sleep(ASK_EVERY_S)
            now = self.server.rows(run.where for run in recent)
            if all(now[run.where] == served[run.where] for run in recent):
                break
            served |= now
        return served

    def _verify(self, runs: list[Pending]) -> None:
        """Compare the server's rows with those of the logs; it may take a moment."""
        waiting = {run.where: run for run in runs}
        until = time.monotonic() + VERIFY_LIMIT_S
        while waiting:
            served = self.server.rows(waiting)
            late = time.monotonic() > until
            for where, run in list(waiting.items()):
                answer = served[where]
                if answer is None:
                    self.outcome.unverified.add(run.id)
                elif answer.rows > run.rows or (late and answer.rows < run.rows):
                    self.failed[run.id] = f"the server has {answer.rows} of {run.rows} rows"
                elif answer.rows < run.rows:
                    continue
                del waiting[where]
            time.sleep(ASK_EVERY_S if waiting else 0)

    @contextmanager
    def _reporting(self, id: str) -> Generator[None]:
        try:
            yield
        except CannotUpload as error:
            self.failed[id] = str(error)
            self.unlike.add(id)
        except (ConfigError, OSError) as error:
            self.failed[id] = one_line(error)
