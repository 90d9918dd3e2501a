"""A process's dealings with W&B: online or offline, and the start of its runs."""

import logging
import os
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sae_sweeps.errors import ConfigError
from sae_sweeps.tracking.wandb import offline, service
from sae_sweeps.tracking.wandb.places import logs_of
from sae_sweeps.tracking.wandb.server import Server

logger = logging.getLogger(__name__)

FINISH_LIMIT_S = 60.0  # what is not uploaded by then lies complete on disk
UPLOAD_SHARE = 0.8  # of it, after which W&B gives up, so that there is time to tell
REVIVALS = 3  # of W&B's own process, which something may kill each time
INIT_LIMIT_S = 30.0
PROBE_LIMIT_S = 2.0
GIT = ("git_commit", "git_remote_url")
FLUSH_EVERY_S = 2.0
"""15 by default; what a kill takes is told again by the next attempt, or by `sync`."""
FIRST_SENDS_EVERY_S, OTHERS_SEND_EVERY_S = 15.0, 60.0  # W&B limits rates by project


@dataclass(frozen=True)
class Started:
    """A W&B run, and what W&B has of it from earlier attempts."""

    run: Any
    tokens: int = 0
    """All rows up to this many tokens, by W&B's files."""
    rows: int = 0
    """This many rows from the first on, by the server."""
    life: int = 0
    """Which of W&B's own processes it is in, one after the other."""


class Refused(Exception):
    """The server turned rows away for good, which are on disk."""


@final
class Session:
    """Starts W&B runs, all online or, from the first trouble on, offline."""

    def __init__(self, requested: str) -> None:
        self._requested = requested
        self._mode: str | None = None
        self._ready = False
        self._folder = Path()
        self._lock = threading.Lock()  # one start at a time; the first may change the mode
        self._started = 0
        self._life = 0  # counts W&B's own processes, of which there is one at a time
        self._git: dict[str, Any] = {}  # what W&B found, for all runs but the first
        self.abandoned = False
        self._told: set[type[Exception]] = set()
        self._told_offline = False

    def start(self, options: dict[str, Any]) -> Started | None:
        """Open a W&B run as decided, else offline; None if neither works."""
        with self._lock, self.reporting():
            self._folder = logs_of(options["dir"])
            if not self._ready:
                self._mode, why = _decide(self._mode or self._requested, self._folder)
                self._ready = True
                if why:
                    self._go_offline(why)
            try:
                return self._start(options)
            except Exception as error:
                if self.abandoned or not service.is_gone(error):
                    raise
                self._renew()
                return self._start(options)
        return None

    def revive(self, dead: Started) -> None:
        """Start W&B's own process again, which is gone; for one of its runs after the other."""
        with self._lock:
            if dead.life == self._life:
                self._renew()

    def abandon(self) -> None:
        """End W&B's own process, which is late, since ours cannot end before it.

        What it was told it has written by now, or else never will. Whatever comes is offline.
        """
        self._go_offline("it was not done in time")
        self.abandoned, self._ready = True, False
        self._life += 1
        service.tear_down(kill=True)

    def bury(self, leaving: bool) -> None:
        """Forget W&B's own process if it has died or, `leaving`, may die any moment.

        Otherwise it would be missed when ours ends.
        """
        if leaving or service.is_dead():
            self._ready = False
            self._life += 1
            service.tear_down()

    @contextmanager
    def reporting(self) -> Generator[None]:
        """Swallow exceptions, and tell the log of the first of each kind."""
        try:
            yield
        except (TimeoutError, Refused) as error:
            late = f"the server did not take all rows in {FINISH_LIMIT_S:.0f} s"
            if self._mode == "online":  # and no other run or report shall wait as long again
                self._go_offline(late if isinstance(error, TimeoutError) else str(error))
        except Exception as error:  # W&B raises what it likes, and training must go on
            if type(error) not in self._told and not self.abandoned:
                self._told.add(type(error))
                logger.warning("W&B: %s; the run's own folder has everything", _line(error))

    def _start(self, options: dict[str, Any]) -> Started:
        started = self._start_online(options) if self._mode == "online" else None
        return started or self._start_offline(options)

    def _renew(self) -> None:
        """Let go of W&B's own process, which is gone, and prepare another."""
        if self._life == REVIVALS:
            if not self.abandoned:
                logger.warning("W&B: its process ends again and again; the runs' folders are whole")
            self.abandoned = True
            return
        self._life += 1
        logger.warning("W&B: its process is gone; runs go on in a new one")
        service.tear_down()
        self._mode, _ = _decide(self._mode or self._requested, self._folder)

    def _start_online(self, options: dict[str, Any]) -> Started | None:
        """Go on where the server's history of the run ends."""
        earlier = self._earlier(options["id"])
        try:
            run = self._init(options)
        except Exception as error:
            if service.is_gone(error):
                raise
            self._go_offline(_line(error))
            self._clear_up(options["id"], earlier)
            return None
        # What the server lacks, it gets now; it must not get it once more by `wandb sync`.
        for fragment in [*earlier, *self._earlier(options["id"], "-offline*")]:
            if not fragment.settled:
                with self.reporting():
                    offline.set_aside(fragment)
        return Started(run, rows=self._served(run), life=self._life)

    def _served(self, run: Any) -> int:
        """How many rows of a run the server has.

        W&B's own next step will not do, measured with wandb 0.31: it follows the run's summary,
        which may have arrived ahead of its rows.
        """
        if not run.resumed:
            return 0
        where = run.entity, run.project, run.id
        try:
            served = Server().rows([where])[where]
        except ConfigError:  # it does not answer such questions
            served = None
        return run.starting_step if served is None else served.rows

    def _start_offline(self, options: dict[str, Any]) -> Started:
        """Go on where W&B's files end; in a run apart if nobody can say what the server has."""
        id, number = options["id"], 0
        earlier = self._earlier(id)
        while any(fragment.partly_sent for fragment in earlier):
            for fragment in earlier:  # a second upload would repeat what came with the first
                (offline.hide if fragment.partly_sent else offline.mend)(fragment)
            number += 1
            options["id"] = f"{id}-offline{number}"
            earlier = self._earlier(options["id"])
        for fragment in earlier:
            offline.mend(fragment)
        tokens = max((fragment.tokens for fragment in earlier), default=0)
        return Started(self._init(options), tokens=tokens, life=self._life)

    def _earlier(self, id: str, end: str = "") -> list[offline.Fragment]:
        return offline.fragments(self._folder, id, end)

    def _clear_up(self, id: str, earlier: list[offline.Fragment]) -> None:
        """After the first start failed, let go of its id: the server has nothing of that start."""
        if self._started > 0:  # a teardown would end the other runs; this one goes on apart
            return
        service.tear_down()
        _decide("offline", self._folder)
        before = {fragment.path for fragment in earlier}
        for fragment in self._earlier(id):
            if fragment.path not in before:
                offline.set_aside(fragment)

    def _init(self, options: dict[str, Any]) -> Any:
        import wandb

        first = self._started == 0
        settings = _settings(
            console="off",
            finish_timeout=UPLOAD_SHARE * FINISH_LIMIT_S,
            finish_timeout_raises=True,
            init_timeout=INIT_LIMIT_S,
            x_transaction_log_flush_interval=FLUSH_EVERY_S,
            x_file_stream_transmit_interval=FIRST_SENDS_EVERY_S if first else OTHERS_SEND_EVERY_S,
            x_disable_stats=not first,  # the machine's load is the same for all
            x_save_requirements=first,  # so are its packages, which take 50 ms to list
            **self._git,
        )
        how = {"mode": self._mode, "reinit": "create_new", "resume": "allow"}
        run = wandb.init(settings=settings, **how, **options)
        self._started += 1
        self._git = {"disable_git": True}  # four processes a run; the first has told it
        self._git |= {name: getattr(run.settings, name, None) for name in GIT}
        run.define_metric("tokens_seen")
        run.define_metric("*", step_metric="tokens_seen")
        if first and self._mode == "online":
            logger.info("W&B: online, %s, group %s", run.project_url, options["group"])
        return run

    def _go_offline(self, why: str) -> None:
        """Tell why, once: one trouble brings others."""
        if self._told_offline:
            return
        self._mode, self._told_offline = "offline", True
        path, sweep = os.path.relpath(self._folder), os.path.relpath(self._folder.parent)
        advice = f"look with `wandb leet {path}`, upload with `sae-sweeps sync {sweep}`"
        logger.info("W&B: offline (%s); %s", why, advice)


def _decide(requested: str, folder: Path) -> tuple[str, str]:
    """Prepare W&B and choose online or offline, with the reason for offline."""
    for name in ("DATA", "CACHE", "ARTIFACT"):  # staged files would fill the home folder's quota
        os.environ.setdefault(f"WANDB_{name}_DIR", str(folder / f".{name.lower()}"))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it calls home in offline mode too
    os.environ["WANDB_SILENT"] = "true"  # a setting would hold no longer than its next teardown
    import wandb
    from wandb.sdk.lib import wbauth

    service.hush()
    service.leave_launch_out()
    url = wandb.setup(_settings(x_service_wait=120)).settings.base_url
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
