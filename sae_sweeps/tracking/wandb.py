"""Mirrors runs in Weights & Biases.

The only module that imports wandb, and only inside functions. Every mirrored run has a thread of
its own that talks to W&B, so training never waits for a server and never sees W&B's exceptions.
"""

import json
import logging
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from sae_sweeps import files
from sae_sweeps.run import Run
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking, scalars
from sae_sweeps.tracking.off import Off

logger = logging.getLogger(__name__)

FINISH_LIMIT_S = 60.0  # what is not uploaded by then lies complete on disk
INIT_LIMIT_S = 30.0
PROBE_LIMIT_S = 2.0


@final
class Wandb(Tracking):
    """`tracking=wandb`: one W&B run per SAE, grouped by sweep, and one summary per sweep."""

    def __init__(
        self,
        *,
        project: str,
        entity: str | None,
        mode: Literal["auto", "online", "offline", "disabled"],
        tags: list[str],
    ) -> None:
        self._where = {"project": project, "entity": entity}
        self._requested = os.environ.get("WANDB_MODE") or mode
        self._mode: str | None = None
        self._folder = Path()
        self._tags = tags
        self._mirrors: list[_Mirror] = []
        self._lock = threading.Lock()  # one start at a time; the first may change the mode
        self._started = 0
        self._failures: Counter[str] = Counter()

    def open(self, run: Run) -> TrackedRun:
        """Start mirroring `run` in a W&B run of its own."""
        choices = {choice for group, choice in run.choices.items() if group != "tracking"}
        config = {**run.config, "label": run.label, "choices": run.choices}
        for group, node in config.items():
            config[group] = dict(_flat(node)) if isinstance(node, dict) else node
        return self._open(
            run.folder,
            tags=[*sorted(choices - {"none"}), *self._tags],
            config=config,
            dir=run.folder.parents[1],
            group=run.sweep,
            name=run.name,
            job_type="train",
        )

    def summarise(self, summary: Summary) -> None:
        """Write the `sweep-summary` run; repeating it adds a step to the same run."""
        self.close()  # which shows whether the server still answers
        run = self._open(
            summary.folder,
            tags=self._tags,
            dir=summary.folder,
            group=summary.sweep,
            name=f"{summary.sweep}-summary",
            job_type="sweep-summary",
        )
        if isinstance(run, _Mirror):
            run.tasks.put(partial(_log_report, summary))
            run.finish({}, failed=False)
            self.close()

    def close(self) -> None:
        """Wait at most about `FINISH_LIMIT_S` for uploads; a run still open ends as failed."""
        deadline = time.monotonic() + FINISH_LIMIT_S + 5
        for mirror in self._mirrors:
            mirror.finish({}, failed=True)
        late = [mirror for mirror in self._mirrors if not mirror.wait(deadline)]
        if late:
            logger.warning("W&B: gave up waiting for %d runs; their folders are whole", len(late))
        if self._failures.total() > len(self._failures):
            logger.warning("W&B: %d calls failed in all", self._failures.total())
        self._mirrors.clear()

    def _open(self, folder: Path, tags: list[str], **options: Any) -> TrackedRun:
        if self._requested == "disabled":
            return Off()
        options |= self._where | {"tags": list(dict.fromkeys(tag[:64] for tag in tags if tag))}
        with self.reporting():
            options["id"], logged = _earlier(folder, options["name"])
            mirror = _Mirror(self, options, logged)
            self._mirrors.append(mirror)
            return mirror
        return Off()

    def start(self, options: dict[str, Any]) -> Any:
        """Open a W&B run as decided, else offline; None if neither works."""
        with self._lock, self.reporting():
            self._folder = options["dir"] / "wandb"
            if self._mode is None:
                self._mode, why = _decide(self._requested, self._folder)
                if why:
                    self._go_offline(why)
            if self._mode == "online":
                try:
                    return self._init(options)
                except Exception as error:
                    self._go_offline(_line(error))
                    if self._started == 0:
                        import wandb

                        wandb.teardown()  # else W&B holds on to the id of the failed start
                    else:  # a teardown would end the other runs
                        options["id"] += "-offline"
            return self._init(options)
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

    def _init(self, options: dict[str, Any]) -> Any:
        import wandb

        first = self._started == 0
        settings = _settings(
            console="off",
            finish_timeout=FINISH_LIMIT_S,
            finish_timeout_raises=True,
            init_timeout=INIT_LIMIT_S,
            x_transaction_log_flush_interval=1.0,  # 15 s by default, lost when a job is killed
            x_file_stream_transmit_interval=15.0 if first else 60.0,  # W&B limits rates by project
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


@final
class _Mirror(TrackedRun):
    """One W&B run and the thread that feeds it from a queue of calls; None ends it."""

    def __init__(self, tracking: Wandb, options: dict[str, Any], logged: int) -> None:
        self._tracking = tracking
        self._logged = logged  # tokens of the last row that W&B has from an earlier attempt
        self._finished = False
        self.tasks: SimpleQueue[Callable[[Any], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(options,), daemon=True)
        self._thread.start()

    def log(self, row: Mapping[str, float | int]) -> None:
        """Queue a copy of the row."""
        self.tasks.put(partial(self._log, dict(row)))

    def finish(self, summary: Mapping[str, Any], failed: bool) -> None:
        """Queue the end; a second one does nothing."""
        if not self._finished:
            self._finished = True
            self.tasks.put(partial(_finish, summary, failed))
            self.tasks.put(None)

    def wait(self, deadline: float) -> bool:
        """Wait until the queue is worked off, and say whether it was in time."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def _work(self, options: dict[str, Any]) -> None:
        run = self._tracking.start(options)
        if run is not None and run.resumed:
            self._logged = max(self._logged, run.summary.get("tokens_seen") or 0)
        while (task := self.tasks.get()) is not None:
            with self._tracking.reporting():
                if run is not None:
                    task(run)

    def _log(self, row: dict[str, float | int], run: Any) -> None:
        tokens = row.pop("tokens")
        if tokens > self._logged:
            run.log({"tokens_seen": tokens, **row})


def _finish(result: Mapping[str, Any], failed: bool, run: Any) -> None:
    tokens = {"tokens_seen": result["tokens"]} if "tokens" in result else {}
    run.summary.update({f"final/{key}": value for key, value in (scalars(result) | tokens).items()})
    run.finish(exit_code=int(failed))


def _log_report(summary: Summary, run: Any) -> None:
    import wandb

    columns: list[Any] = list(dict.fromkeys(column for row in summary.rows for column in row))
    data: list[Any] = [[row.get(column) for column in columns] for row in summary.rows]
    logged: dict[str, Any] = {
        "runs": wandb.Table(columns=columns, data=data, allow_mixed_types=True),
        "pareto": wandb.Image(str(summary.picture)),
    }
    for name, lines in summary.charts.items():
        xs, ys = zip(*lines.values(), strict=True)
        title = f"L0 against {name}"
        logged[f"pareto/{name}"] = wandb.plot.line_series(xs, ys, list(lines), title, xname="l0")
    run.log(logged)


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


def _earlier(folder: Path, name: str) -> tuple[str, int]:
    """Give the folder's W&B id, made once, and how many tokens an earlier attempt mirrored."""
    path, metrics = folder / "wandb_id.txt", folder / "metrics.jsonl"
    again = path.exists()
    if not again:  # a random end, since equal sweeps of two people must not share a W&B run
        slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:55]
        files.write_text(path, f"{slug}-{secrets.token_hex(4)}\n")
    lines = metrics.read_text(encoding="utf-8").splitlines() if again and metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # the last may be torn
    return path.read_text(encoding="utf-8").strip(), max((row["tokens"] for row in rows), default=0)


def _flat(node: Mapping[str, Any], path: str = "") -> Generator[tuple[str, Any]]:
    """Join nested keys with slashes; W&B filters by config names of at most three dots."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".: ")
