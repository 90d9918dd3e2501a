"""One W&B run and the thread that feeds it."""

import re
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, final

from sae_sweeps.record.folder import RunFolder
from sae_sweeps.record.result import Result, Row
from sae_sweeps.tracking.interface import TrackedRun
from sae_sweeps.tracking.wandb import offline
from sae_sweeps.tracking.wandb.service import is_gone
from sae_sweeps.tracking.wandb.session import Refused, Session, Started

Task = Callable[[Any], None]
"""What is to be done with a W&B run."""
WRITING_LIMIT_S = 2.0
REFUSAL = re.compile(r"filestream: fatal error:.*?(\d{3}[\w ]*) url=")


@final
class Mirror(TrackedRun):
    """Feeds one W&B run from a queue of calls; None ends it.

    W&B gets each row once: those that `folder` has now, and those of `log`
    pass by in order of tokens, and those that W&B has from earlier attempts are left out. Where
    W&B's own process dies, they all pass by again in a new one.
    """

    def __init__(
        self,
        session: Session,
        options: dict[str, Any],
        folder: Path,
        after: "Mirror | None" = None,
    ) -> None:
        self._session, self._options, self._folder = session, options, RunFolder(folder)
        self._after = after  # another mirror of the same W&B run, which must have ended
        self._finished = self._leaving = False
        self._started: Started | None = None
        self._tokens: float = 0  # W&B has, or was told, all rows up to here
        self._rows = 0  # and this many of those to come
        self._written: float = 0  # the last row that this process told W&B
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self.tasks.put(partial(self._catch_up, self._folder.rows()))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def log(self, row: Row) -> None:
        """Queue the row."""
        self.tasks.put(partial(self._log, row))

    def finish(self, result: Result | None) -> None:
        """Queue the end; a second one does nothing."""
        self.end(lambda run: run.summary.update(figures(result)), exit_code=int(result is None))

    def preempt(self) -> None:
        """Queue the end of an attempt that another will follow."""
        self._leaving = True
        self.end(lambda run: run.mark_preempting(), exit_code=1)

    def end(self, last: Task, exit_code: int) -> None:
        """Queue a last task and the end; a second time does nothing."""
        if not self._finished:
            self._finished = True
            self.tasks.put(partial(self._finish, last, exit_code))
            self.tasks.put(None)

    def wait(self, deadline: float) -> bool:
        """Wait until the queue is worked off, and say whether it was in time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self) -> None:
        if self._after is not None:
            self._after._thread.join()
            self._after = None
        self._started = self._start()
        while (task := self.tasks.get()) is not None:
            with self._session.reporting():
                self._do(task)

    def _start(self) -> Started | None:
        started = self._session.start(dict(self._options))
        if started is not None:
            self._tokens, self._rows = started.tokens, started.rows
        return started

    def _do(self, task: Task) -> None:
        """Do it; where W&B's own process is gone, once more in a new one."""
        if self._started is None:
            return
        try:
            task(self._started.run)
        except Exception as error:
            ended = self._leaving or self._session.abandoned  # by a scheduler, or by us
            if ended or not is_gone(error):
                raise
            self._session.revive(self._started)
            self._started = started = self._start()
            if started is not None:
                self._catch_up(self._folder.rows(), started.run)
                task(started.run)

    def _catch_up(self, rows: list[Row], run: Any) -> None:
        for row in rows:
            self._log(row, run)

    def _log(self, row: Row, run: Any) -> None:
        if row.tokens <= self._tokens:
            return
        if self._rows > 0:
            self._rows -= 1
        else:
            self._written = row.tokens
            run.log({"tokens_seen": row.tokens, **row.figures})
        self._tokens = row.tokens

    def _finish(self, last: Task, exit_code: int, run: Any) -> None:
        last(run)
        log, online = Path(run.settings.sync_file), not run.offline
        run.finish(exit_code=exit_code)  # raises if the server does not take all in time
        if online:
            _raise_if_refused(Path(run.settings.log_internal))
            offline.mark_uploaded(log)
        elif not self._leaving:
            _raise_if_unwritten(log, self._written)


def figures(result: Result | None) -> dict[str, Any]:
    """Name a result's figures as W&B's summary does; none without one."""
    if result is None:
        return {}
    flat = {f"eval/{key}": value for key, value in result.metrics.items()}
    scalars = result.scalars | {"tokens_seen": result.tokens}
    return flat | {f"final/{key}": value for key, value in scalars.items()}


def _raise_if_refused(log: Path) -> None:
    """W&B gives up at once where it is answered 401, 403, ...; only its log and terminal say so."""
    found = REFUSAL.search(log.read_text(encoding="utf-8", errors="replace"))
    if found:
        raise Refused(f"the server refused rows: {found[1]}")


def _raise_if_unwritten(log: Path, tokens: float | int) -> None:
    """W&B's process says nowhere that it cannot write; it writes on after a run has ended."""
    deadline = time.monotonic() + WRITING_LIMIT_S
    while offline.read(log).tokens < tokens:
        if time.monotonic() > deadline:
            raise OSError(f"rows are missing in {log}: is the disk full?")
        time.sleep(0.02)
