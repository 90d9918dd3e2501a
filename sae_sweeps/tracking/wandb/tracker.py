"""Mirrors runs in Weights & Biases.

Every mirrored run has a thread of its own that talks to W&B, so training never waits for a server
and never sees W&B's exceptions. In this package wandb is imported only inside functions, and
outside of it not at all.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.record.run import Run
from sae_sweeps.system import files
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking
from sae_sweeps.tracking.off import Off
from sae_sweeps.tracking.wandb import session
from sae_sweeps.tracking.wandb.mirror import Mirror
from sae_sweeps.tracking.wandb.places import id_file, id_of

WAITING_SHARE = 0.95
"""Of the time there is in the end; then W&B's own process is ended."""


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
        self._tags = tags
        self._mirrors: list[Mirror] = []
        self._summary: Mirror | None = None
        self._session = session.Session(self._requested)

    def open(self, run: Run) -> TrackedRun:
        """Start mirroring `run` in a W&B run of its own."""
        chosen = [run.choices.get(g.name) for g in GROUPS if g.tagged]
        usual = [group.usual for group in GROUPS if group.tagged]
        config = {**run.config.tree, "label": run.label, "choices": run.choices}
        for name, value in config.items():
            config[name] = dict(_flat(value)) if isinstance(value, dict) else _scalar(value)
        return self._open(
            run.folder,
            tags=[*(c for c, u in zip(chosen, usual, strict=True) if c and c != u), *self._tags],
            config=config,
            dir=run.folder.parents[1],
            group=run.sweep,
            name=run.name,
            job_type="train",
        )

    def summarise(self, summary: Summary) -> None:
        """Write the `sweep-summary` run; repeating it adds a step to the same run."""
        run = self._open(
            summary.folder,
            after=self._summary,
            tags=self._tags,
            dir=summary.folder,
            group=summary.sweep,
            name=f"{summary.sweep}-summary",
            job_type="sweep-summary",
        )
        if isinstance(run, Mirror):
            self._summary = run
            run.end(partial(_log_report, summary), exit_code=0)

    def close(self, limit_s: float | None = None) -> None:
        """Wait for uploads, by default as long as W&B tries; an open run ends as failed."""
        limit = session.FINISH_LIMIT_S if limit_s is None else limit_s
        now = time.monotonic()
        for mirror in self._mirrors:
            mirror.finish(None)
        late = [mirror for mirror in self._mirrors if not mirror.wait(now + WAITING_SHARE * limit)]
        if late:
            self._session.abandon()
            for mirror in late:  # which may bring what was not begun to an end offline
                mirror.wait(now + limit)
        if self._mirrors:
            self._session.bury(leaving=limit_s is not None)
        self._mirrors.clear()

    def _open(
        self, folder: Path, tags: list[str], after: Mirror | None = None, **options: Any
    ) -> TrackedRun:
        if self._requested == "disabled":
            return Off()
        options |= self._where | {"tags": list(dict.fromkeys(tag[:64] for tag in tags if tag))}
        with self._session.reporting():
            options["id"] = _id(folder, options["name"])
            mirror = Mirror(self._session, options, folder, after)
            self._mirrors.append(mirror)
            return mirror
        return Off()


def _log_report(summary: Summary, run: Any) -> None:
    import wandb

    columns: list[Any] = list(dict.fromkeys(column for row in summary.rows for column in row))
    data: list[Any] = [[row.get(column) for column in columns] for row in summary.rows]
    logged: dict[str, Any] = {
        "runs": wandb.Table(columns=columns, data=data, allow_mixed_types=True),
        "pareto": wandb.Image(str(summary.picture)),
        "frontier": summary.frontier,
    }
    for name, lines in summary.charts.items():
        xs, ys = zip(*lines.values(), strict=True)
        title = f"L0 against {name}"
        logged[f"pareto/{name}"] = wandb.plot.line_series(xs, ys, list(lines), title, xname="l0")
    run.log(logged)


def _id(folder: Path, name: str) -> str:
    """Give the folder's W&B id, made once."""
    id = id_of(folder)
    if id is None:  # a random end, as equal sweeps of two people must not share a W&B run
        slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:46]
        id = f"{slug}-{secrets.token_hex(4)}"
        files.write_text(id_file(folder), f"{id}\n")
    return id


def _flat(node: Mapping[str, Any], path: str = "") -> Generator[tuple[str, Any]]:
    """Join nested keys with slashes; W&B filters by config names of at most three dots."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", _scalar(value)


def _scalar(value: Any) -> Any:
    """A list as text, since W&B does not filter or group by what is in lists."""
    return json.dumps(value) if isinstance(value, list) else value
