"""One W&B run and the thread that feeds it."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, final

from sae_sweeps.tracking import offline
from sae_sweeps.tracking.interface import TrackedRun, scalars
from sae_sweeps.tracking.session import Session


@final
class Mirror(TrackedRun):
    """Feeds one W&B run from a queue of calls; None ends it.

    W&B gets each row once: `rows`, the lines of `metrics.jsonl`, and those of `log` pass by in
    order of tokens, and those that W&B has from earlier attempts are left out.
    """

    def __init__(self, session: Session, options: dict[str, Any], rows: list[str]) -> None:
        self._session = session
        self._finished = False
        self._tokens: float = 0  # W&B has, or was told, all rows up to here
        self._rows = 0  # and this many of those to come
        self.tasks: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()
        self.tasks.put(partial(self._catch_up, rows))
        self._thread = threading.Thread(target=self._work, args=(options,), daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, float | int]) -> None:
        """Queue a copy of the row."""
        self.tasks.put(partial(self._log, dict(row)))

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Queue the end; a second one does nothing."""
        self._end(partial(_summarise, summary), exit_code=int(failed))

    def preempt(self) -> None:
        """Queue the end of an attempt that another will follow."""
        self._end(lambda run: run.mark_preempting(), exit_code=1)

    def wait(self, deadline: float) -> bool:
        """Wait until the queue is worked off, and say whether it was in time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _end(self, last: Callable[[Any], None], exit_code: int) -> None:
        if not self._finished:
            self._finished = True
            self.tasks.put(last)
            self.tasks.put(partial(_finish, exit_code))
            self.tasks.put(None)

    def _work(self, options: dict[str, Any]) -> None:
        started = self._session.start(options)
        if started is not None:
            self._tokens, self._rows = started.tokens, started.rows
        while (task := self.tasks.get()) is not None:
            with self._session.reporting():
                if started is not None:
                    task(started.run)

    def _catch_up(self, rows: list[str], run: Any) -> None:
        for row in rows:
            self._log(json.loads(row), run)

    def _log(self, row: dict[str, float | int], run: Any) -> None:
        tokens = row.pop("tokens")
        if tokens <= self._tokens:
            return
        self._tokens = tokens
        if self._rows > 0:
            self._rows -= 1
            return
        run.log({"tokens_seen": tokens, **row})


def _summarise(result: Mapping[str, Any], run: Any) -> None:
    tokens = {"tokens_seen": result["tokens"]} if "tokens" in result else {}
    run.summary.update({f"final/{key}": value for key, value in (scalars(result) | tokens).items()})


def _finish(exit_code: int, run: Any) -> None:
    log, online = Path(run.settings.sync_file), not run.offline
    run.finish(exit_code=exit_code)  # raises if the server does not take all in time
    if online:
        offline.mark_uploaded(log)
