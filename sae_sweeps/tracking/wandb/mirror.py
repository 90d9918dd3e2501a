"""One W&B run and the thread that feeds it."""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, final

from sae_sweeps.tracking.interface import TrackedRun, scalars
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

    W&B gets each row once: the lines of `metrics.jsonl` that `folder` has now, and those of `log`
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
        self._session, self._options, self._folder = session, options, folder
        self._after = after  # another mirror of the same W&B run, which must have ended
        self._finished = self._leaving = False
        self._started: Started | None = None
        self._tokens: float = 0  # W&B has, or was told, all rows up to here
        self._rows = 0  # and this many of those to come
        self._written: float = 0  # the last row that this process told W&B
        self.tasks: SimpleQueue[Task | None] = SimpleQueue()
        self.tasks.put(partial(self._catch_up, rows_of(folder)))
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, float | int]) -> None:
        """Queue a copy of the row."""
        self.tasks.put(partial(self._log, dict(row)))

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Queue the end; a second one does nothing."""
        self.end(lambda run: run.summary.update(figures(summary)), exit_code=int(failed))

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
                self._catch_up(rows_of(self._folder), started.run)
                task(started.run)

    def _catch_up(self, rows: list[str], run: Any) -> None:
        for row in rows:
            self._log(json.loads(row), run)

    def _log(self, row: dict[str, float | int], run: Any) -> None:
        tokens = row["tokens"]
        if tokens <= self._tokens:
            return
        if self._rows > 0:
            self._rows -= 1
        else:
            self._written = tokens
            run.log({"tokens_seen" if key == "tokens" else key: row[key] for key in row})
        self._tokens = tokens

    def _finish(self, last: Task, exit_code: int, run: Any) -> None:
        last(run)
        log, online = Path(run.settings.sync_file), not run.offline
        run.finish(exit_code=exit_code)  # raises if the server does not take all in time
        if online:
            _raise_if_refused(Path(run.settings.log_internal))
            offline.mark_uploaded(log)
        elif not self._leaving:
            _raise_if_unwritten(log, self._written)


def rows_of(folder: Path) -> list[str]:
    """The rows that a run's folder has; a crash may have torn the last one."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if line.endswith("}")]


def figures(result: Mapping[str, Any]) -> dict[str, Any]:
    """Name the figures of a `result.json` as W&B's summary does; none if it is empty."""
    tokens = {"tokens_seen": result["tokens"]} if "tokens" in result else {}
    flat = {f"eval/{key}": value for key, value in result.get("metrics", {}).items()}
    return flat | {f"final/{key}": value for key, value in (scalars(result) | tokens).items()}


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
