"""Writes a plan's outlook for people, or as JSON."""

import json
import sys
from itertools import groupby
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from sae_sweeps.launching.summary import say, tell_notes, tell_plan
from sae_sweeps.planning.memory import FILLED
from sae_sweeps.planning.outlook import Disk, Outlook, PackOutlook
from sae_sweeps.record import status
from sae_sweeps.record.plan import Plan
from sae_sweeps.system.terminal import console

UNKNOWN = "?"
TIMES = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))
UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))


def as_json(plan: Plan, outlook: Outlook) -> str:
    """Write all of it as one JSON object."""
    document: dict[str, Any] = {
        **{"name": plan.name, "folder": str(plan.folder), "points": len(plan.points)},
        **{"finished": len(plan.finished), "under_way": len(plan.under_way)},
        **{"to_train": sum(map(len, plan.packs)), "to_measure": sum(map(len, plan.remeasured))},
        **outlook.as_json(),
    }
    return json.dumps(document, indent=1, allow_nan=False)


def drawn(outlook: Outlook) -> Group:
    """Draw it: a row for each kind of pack, then what all of them take."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("packs", justify="right")
    table.add_column("runs", justify="right")
    table.add_column("one pass over", overflow="fold")
    for heading in ("tokens", "memory", "time"):
        table.add_column(heading, justify="right", no_wrap=True)
    for pack, alike in groupby(outlook.packs):
        table.add_row(*_cells(pack, len(list(alike))))
    return Group(table, *map(Text, lines(outlook)))


def _cells(pack: PackOutlook, count: int) -> list[Text]:
    memory = _bytes(pack.memory_bytes)
    time = UNKNOWN if pack.seconds is None else _duration(pack.seconds)
    cells = str(count), str(pack.runs), pack.where, f"{pack.pass_tokens:,}", memory, time
    return list(map(Text, cells))  # whose brackets are no commands


def lines(outlook: Outlook) -> list[str]:
    """Say in words what all packs take together."""
    passes = sum(pack.pass_tokens for pack in outlook.packs)
    found = [
        f"Forward passes: {passes:,} tokens; run by run they would be {outlook.alone_tokens:,}",
        f"Disk: {_disk(outlook.disk)}",
        _time(outlook),
    ]
    needed = max((pack.memory_bytes or 0 for pack in outlook.packs), default=0)
    if outlook.room_bytes is not None and needed > FILLED * outlook.room_bytes:
        room = _bytes(outlook.room_bytes)
        found.append(f"Memory: a pack of {_bytes(needed)} may not fit into {room}")
    return found


def _time(outlook: Outlook) -> str:
    if outlook.seconds is None or outlook.device_hours is None:
        return "Time: not known before the target model is here"
    beside = min(outlook.at_once, len(outlook.packs))
    side = f", {beside} packs at a time" if beside > 1 else ""
    hours = f" ({outlook.device_hours:.2g} {outlook.device} hours)"
    return f"Time: about {_duration(outlook.seconds)}{side}{hours}, {outlook.basis}"


def _disk(disk: Disk) -> str:
    cache = f", {_bytes(disk.token_cache)} token cache" if disk.token_cache != 0 else ""
    checkpoints = f"up to {_bytes(disk.checkpoints)} checkpoints meanwhile"
    return f"{_bytes(disk.weights)} weights, {checkpoints}{cache}; {_bytes(disk.free)} free"


def _bytes(count: int | None) -> str:
    """`19.4 GB`; a question mark for what nobody knows."""
    if count is None:
        return UNKNOWN
    size, unit = next(((size, unit) for size, unit in UNITS if count >= size), (1, "B"))
    return f"{count / size:.{0 if count >= 100 * size or size == 1 else 1}f} {unit}"


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3.4 h`, `2.1 days`."""
    size, unit = next(((size, unit) for size, unit in TIMES if seconds >= 1.5 * size), TIMES[-1])
    return f"{seconds / size:.{1 if size > 60 else 0}f} {unit}"


def short(outlook: Outlook) -> str:
    """Say in one line what a launch is going to take."""
    packs = len(outlook.packs)
    memory = max((pack.memory_bytes or 0 for pack in outlook.packs), default=0)
    parts = [f"{packs} {'pack' if packs == 1 else 'packs'}"]
    if memory:
        parts.append(f"{_bytes(memory)} of memory at most")
    if outlook.seconds is not None:
        parts.append(f"about {_duration(outlook.seconds)}, {outlook.basis}")
    if outlook.disk.weights is not None and outlook.disk.checkpoints is not None:
        parts.append(f"{_bytes(outlook.disk.weights + outlook.disk.checkpoints)} on disk")
    return f"Ahead: {', '.join(parts)}"


def show(plan: Plan, outlook: Outlook, as_document: bool) -> None:
    """Write it to standard output."""
    if as_document:
        tell_notes()
        sys.stdout.write(as_json(plan, outlook) + "\n")
        return
    tell_plan(plan)
    if outlook.packs:
        console().print(drawn(outlook), crop=False)
    say(f"Nothing was written. The folder will be {status.shown(plan.folder)}")
