"""A process's dealings with W&B: online or offline, and the start of its runs."""

import logging
import os
import threading
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sae_sweeps.tracking import offline

logger = logging.getLogger(__name__)

FINISH_LIMIT_S = 60.0  # what is not uploaded by then lies complete on disk
INIT_LIMIT_S = 30.0
PROBE_LIMIT_S = 2.0
FIRST_SENDS_EVERY_S, OTHERS_SEND_EVERY_S = 15.0, 60.0  # W&B limits rates by project


@dataclass(frozen=True)
class Started:
    """A W&B run, and what W&B has of it from earlier attempts."""

    run: Any
    tokens: int = 0
    """All rows up to this many tokens, by W&B's files."""
    rows: int = 0
    """This many rows from the first on, by the server."""


@final
class Session:
    """Starts W&B runs, all online or, from the first trouble on, offline."""

    def __init__(self, requested: str) -> None:
        self._requested = requested
        self._mode: str | None = None
        self._folder = Path()
        self._lock = threading.Lock()  # one start at a time; the first may change the mode
        self._started = 0
        self._failures: Counter[str] = Counter()

    def start(self, options: dict[str, Any]) -> Started | None:
        """Open a W&B run as decided, else offline; None if neither works."""
        with self._lock, self.reporting():
            self._folder = options["dir"] / "wandb"
            if self._mode is None:
                self._mode, why = _decide(self._requested, self._folder)
                if why:
                    self._go_offline(why)
            started = self._start_online(options) if self._mode == "online" else None
            return started or self._start_offline(options)
        return None

    @contextmanager
    def reporting(self) -> Generator[None]:
        """Swallow exceptions, and tell the log of the first of each kind."""
        try:
            yield
        except TimeoutError:
            if self._mode == "online":  # and no other run or report shall wait as long again
                self._go_offline(f"the server did not take all rows in {FINISH_LIMIT_S:.0f} s")
        except Exception as error:  # W&B raises what it likes, and training must go on
            self._failures[type(error).__name__] += 1
            if self._failures[type(error).__name__] == 1:
                logger.warning("W&B: %s; the run's own folder has everything", _line(error))

    def report_failures(self) -> None:
        """Tell the log how many calls failed, if more than it was told one by one."""
        if self._failures.total() > len(self._failures):
            logger.warning("W&B: %d calls failed in all", self._failures.total())

    def _start_online(self, options: dict[str, Any]) -> Started | None:
        """Go on where the server's history of the run ends.

        Its summary will not do: one that arrived may be ahead of the history. Every row is one
        step, so that the next step is the number of rows.
        """
        earlier = self._earlier(options["id"])
        try:
            run = self._init(options)
        except Exception as error:
            self._go_offline(_line(error))
            self._clear_up(options["id"], earlier)
            return None
        # What the server lacks, it gets now; it must not get it once more by `wandb sync`.
        for fragment in [*earlier, *self._earlier(options["id"], "-offline*")]:
            if not fragment.settled:
                with self.reporting():
                    offline.set_aside(fragment)
        return Started(run, rows=run.starting_step)

    def _start_offline(self, options: dict[str, Any]) -> Started:
        """Go on where W&B's files end; in a run apart if nobody can say what the server has."""
        id, number = options["id"], 0
        earlier = self._earlier(id)
        while sent := [fragment for fragment in earlier if fragment.partly_sent]:
            for fragment in sent:  # a second upload would repeat what came with the first
                offline.hide(fragment)
            number += 1
            options["id"] = f"{id}-offline{number}"
            earlier = self._earlier(options["id"])
        for fragment in earlier:
            offline.mend(fragment)
        tokens = max((fragment.tokens for fragment in earlier), default=0)
        return Started(self._init(options), tokens=tokens)

    def _earlier(self, id: str, end: str = "") -> list[offline.Fragment]:
        return offline.fragments(self._folder, id, end)

    def _clear_up(self, id: str, earlier: list[offline.Fragment]) -> None:
        """After the first start failed, let go of its id: the server has nothing of that start."""
        if self._started > 0:  # a teardown would end the other runs; this one goes on apart
            return
        import wandb

        wandb.teardown()
        before = {fragment.path for fragment in earlier}
        for fragment in self._earlier(id):
            if fragment.path not in before:
                offline.set_aside(fragment)

    def _init(self, options: dict[str, Any]) -> Any:
        import wandb

        first = self._started == 0
        settings = _settings(
            console="off",
            finish_timeout=FINISH_LIMIT_S,
            finish_timeout_raises=True,
            init_timeout=INIT_LIMIT_S,
            x_transaction_log_flush_interval=1.0,  # 15 s by default, lost when a job is killed
            x_file_stream_transmit_interval=FIRST_SENDS_EVERY_S if first else OTHERS_SEND_EVERY_S,
            x_disable_stats=not first,  # the machine's load is the same for all
        )
        how = {"mode": self._mode, "reinit": "create_new", "resume": "allow"}
        run = wandb.init(settings=settings, **how, **options)
        self._started += 1
        run.define_metric("tokens_seen")
        run.define_metric("*", step_metric="tokens_seen")
        if first and self._mode == "online":
            logger.info("W&B: online, %s, group %s", run.project_url, options["group"])
        return run

    def _go_offline(self, why: str) -> None:
        self._mode = "offline"
        path = os.path.relpath(self._folder)
        advice = f"look with `wandb leet {path}`, upload with `wandb sync {path}`"
        logger.info("W&B: offline (%s); %s", why, advice)


def _decide(requested: str, folder: Path) -> tuple[str, str]:
    """Prepare W&B and choose online or offline, with the reason for offline."""
    for name in ("DATA", "CACHE", "ARTIFACT"):  # staged files would fill the home folder's quota
        os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / f".{name.lower()}"))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it calls home in offline mode too
    import wandb
    from wandb.sdk.lib import wbauth

    url = wandb.setup(_settings(show_info=False, quiet=True, x_service_wait=120)).settings.base_url
    if requested in ("offline", "dryrun"):
        return "offline", "as asked"
    try:
        auth = wbauth.authenticate_session(host=url, source="", prompt=False, update_session=False)
    except wandb.Error as error:
        return "offline", _line(error)
    if auth is None:
        return "offline", "no API key, see `wandb login`"
    problem = "" if requested == "online" else _problem(url)
    return "offline" if problem else "online", problem


def _problem(url: str) -> str:
    """Say why the server cannot be used; any answer but a breakdown shows that it is there."""
    request = Request(f"{url}/graphql", b"{}", {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=PROBE_LIMIT_S):
            return ""
    except HTTPError as error:
        error.close()
        return f"{url} answers {error.code}" if error.code >= 500 else ""
    except Exception as error:
        return f"{url}: {_line(error)}"


def _settings(**wanted: Any) -> Any:
    """Make settings of those that this wandb knows; names with `x_` are private and change."""
    import wandb

    known = wandb.Settings.model_fields
    return wandb.Settings(**{name: value for name, value in wanted.items() if name in known})


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
