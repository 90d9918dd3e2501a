"""Mirrors runs in Weights & Biases.

Every mirrored run has a thread of its own that talks to W&B, so training never waits for a server
and never sees W&B's exceptions. In this package wandb is imported only inside functions, and
outside of it not at all.
"""

import logging
import os
import re
import secrets
import time
from collections.abc import Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

from sae_sweeps import files
from sae_sweeps.run import Run
from sae_sweeps.tracking import session
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking
from sae_sweeps.tracking.mirror import Mirror
from sae_sweeps.tracking.off import Off

logger = logging.getLogger(__name__)


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
        self._session = session.Session(self._requested)

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
        if isinstance(run, Mirror):
            run.tasks.put(partial(_log_report, summary))
            run.finish({}, failed=False)
            self.close()

    def close(self, limit_s: float | None = None) -> None:
        """Wait for uploads, by default about as long as W&B tries; an open run ends as failed."""
        limit = session.FINISH_LIMIT_S + 5 if limit_s is None else limit_s
        deadline = time.monotonic() + limit
        for mirror in self._mirrors:
            mirror.finish({}, failed=True)
        late = [mirror for mirror in self._mirrors if not mirror.wait(deadline)]
        if late:
            logger.warning("W&B: gave up waiting for %d runs; their folders are whole", len(late))
        self._session.report_failures()
        self._mirrors.clear()

    def _open(self, folder: Path, tags: list[str], **options: Any) -> TrackedRun:
        if self._requested == "disabled":
            return Off()
        options |= self._where | {"tags": list(dict.fromkeys(tag[:64] for tag in tags if tag))}
        with self._session.reporting():
            options["id"] = _id(folder, options["name"])
            mirror = Mirror(self._session, options, _rows(folder))
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
    }
    for name, lines in summary.charts.items():
        xs, ys = zip(*lines.values(), strict=True)
        title = f"L0 against {name}"
        logged[f"pareto/{name}"] = wandb.plot.line_series(xs, ys, list(lines), title, xname="l0")
    run.log(logged)


def _id(folder: Path, name: str) -> str:
    """Give the folder's W&B id, made once."""
    path = folder / "wandb_id.txt"
    if not path.exists():  # a random end, as equal sweeps of two people must not share a W&B run
        slug = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)[:46]
        files.write_text(path, f"{slug}-{secrets.token_hex(4)}\n")
    return path.read_text(encoding="utf-8").strip()


def _rows(folder: Path) -> list[str]:
    """The rows of earlier attempts; a crash may have torn the last one."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in lines if line.endswith("}")]


def _flat(node: Mapping[str, Any], path: str = "") -> Generator[tuple[str, Any]]:
    """Join nested keys with slashes; W&B filters by config names of at most three dots."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}/")
        else:
            yield f"{path}{key}", value
