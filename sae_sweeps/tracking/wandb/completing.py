"""Tells W&B what a finished run's own folder holds and W&B was never told.

That is what a process could not tell before it was killed, or could not write on a full disk.
"""

import json
import math
import os
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.wandb import mirror, places, service
from sae_sweeps.tracking.wandb.offline import Content
from sae_sweeps.tracking.wandb.server import W_AND_B_RUN
from sae_sweeps.tracking.wandb.tracker import Wandb

AT_ONCE = 16
"""Each has a thread of its own."""


def id_of(run: Run) -> str | None:
    """Give its W&B id; None if it was never mirrored."""
    return places.id_of(run.folder) if "project" in run.config.nodes["tracking"] else None


def place(run: Run, id: str) -> W_AND_B_RUN:
    """Tell where it is at the server."""
    tracking = run.config.nodes["tracking"]
    return tracking.get("entity") or "", tracking["project"], id


def is_whole(run: Run, logs: Sequence[Content], served: int | None) -> bool:
    """Tell whether W&B has all rows of a finished run, and its figures as they are now.

    Args:
        run: that has a result or has failed.
        logs: what the server has all of.
        served: how many rows the server says that it has; if it does not say, it is that of `logs`.
    """
    rows = run.files.rows()
    if served is None:
        tokens = max((log.fragment.tokens for log in logs), default=0)
        there = not rows or tokens >= rows[-1].tokens
    else:
        there = served >= len(rows)
    told = dict[str, Any]()
    for log in sorted(logs, key=lambda log: log.started):
        told |= log.summary
    figures = mirror.figures(_result(run)).items()
    return there and all(_equal(told.get(key), value) for key, value in figures)


def complete(runs: Sequence[Run]) -> None:
    """Tell W&B, online, what it lacks of finished runs; each gets each row once.

    Where the server takes no more, what is told from then on waits on disk for another upload.
    """
    service.tear_down()  # it has settings of another kind
    os.environ["WANDB_MODE"] = "online"  # who uploads does not mean `offline`
    for _, alike in groupby(runs, lambda run: json.dumps(run.config.nodes["tracking"])):
        some = list(alike)
        tracking = _tracker(some[0])
        for start in range(0, len(some), AT_ONCE):
            for run in some[start : start + AT_ONCE]:
                tracking.open(run).finish(_result(run))
            tracking.close()
    service.tear_down()


def _tracker(run: Run) -> Wandb:
    """Make a tracker of our own class: a folder may be somebody else's, and names no other one."""
    entity, project, _ = place(run, "")
    tags = [*run.config.nodes["tracking"].get("tags", [])]
    return Wandb(project=project, entity=entity or None, mode="online", tags=tags)


def _result(run: Run) -> Result | None:
    return run.files.result() if run.files.finished.exists() else None


def _equal(told: Any, value: Any) -> bool:
    """W&B writes what is not finite as null, or in words."""
    if isinstance(value, float) and not math.isfinite(value):
        return not isinstance(told, int | float) or not math.isfinite(told)
    return told == value
