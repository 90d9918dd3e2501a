"""What a launch will take: of each pack, and of all of them."""

import heapq
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET
from sae_sweeps.config.source import own_static
from sae_sweeps.planning.estimate import Estimate
from sae_sweeps.planning.memory import width_of
from sae_sweeps.planning.told import told
from sae_sweeps.record.identity import stream_identity
from sae_sweeps.record.plan import Plan
from sae_sweeps.record.run import Run

CHECKPOINTED, LEFT = 24, 8
"""Bytes a parameter: two checkpoints of weights and moments, and the weights in two layouts."""

REFERENCES = 4
"""Passes over the tokens of a cross-entropy that a stream has once: clean, and what replaces it."""


@dataclass(frozen=True)
class Division:
    """How a launcher divides a plan's runs among processes."""

    packs: list[list[Run]]
    at_once: int
    """packs that are trained at the same time"""
    room: int | None = None
    """bytes of memory of the device of each, where that is known"""
    devices: int = 1
    """that each has for itself, though it uses one"""


@dataclass(frozen=True)
class PackOutlook:
    """What a pack will take; None for what nobody knows yet."""

    runs: int
    where: str
    """the target model and its hooks, in words"""
    pass_tokens: int
    """tokens that go through the target model for training"""
    memory_bytes: int | None
    seconds: float | None


@dataclass(frozen=True)
class Disk:
    """Bytes on disk; None for what nobody knows yet."""

    weights: int | None
    """of finished runs"""
    checkpoints: int | None
    """at most, while runs are in training"""
    token_cache: int | None
    """of rows that are yet to be packed"""
    free: int
    """where the sweep's folder will be"""


@dataclass(frozen=True)
class Outlook:
    """What a launch will take."""

    packs: list[PackOutlook]
    at_once: int
    room_bytes: int | None
    alone_tokens: int
    """tokens that would go through target models if each run had a pass for itself"""
    disk: Disk
    seconds: float | None
    device: str
    """what packs are trained on, `GPU` or `CPU`"""
    device_hours: float | None
    """summed over all devices that packs have for themselves"""
    basis: str
    """whence the times are, in words"""

    def as_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)


def of_plan(plan: Plan, division: Division, estimate: Estimate) -> Outlook:
    """Foretell a launch."""
    packs = [_of_pack(runs, plan, estimate) for runs in division.packs]
    seconds = [pack.seconds for pack in packs if pack.seconds is not None]
    known = len(seconds) == len(packs)
    todo = [run for runs in plan.packs for run in runs]
    return Outlook(
        packs,
        division.at_once,
        division.room,
        sum(map(plan.left, todo)),
        _disk(plan, division, todo),
        _makespan(seconds, division.at_once) if known else None,
        estimate.device,
        division.devices * sum(seconds) / 3600 if known else None,
        estimate.basis,
    )


def _of_pack(runs: list[Run], plan: Plan, estimate: Estimate) -> PackOutlook:
    finished = {run.name for group in plan.remeasured for run in group}
    left = {run.name: 0 if run.name in finished else plan.left(run) for run in runs}
    memory, seconds = estimate.memory_bytes(runs), _seconds(runs, left, estimate)
    return PackOutlook(len(runs), _where(runs), max(left.values()), memory, seconds)


def _where(runs: Sequence[Run]) -> str:
    """`embedded at blocks.1.hook_resid_post, blocks.2.hook_resid_post`."""
    nodes = [run.config.nodes["target_model"] for run in runs]
    hooks = dict.fromkeys(str(node["hook"]) for node in nodes if "hook" in node)
    name = nodes[0].get("model") or nodes[0].get("path") or runs[0].choices["target_model"]
    return f"{name} at {', '.join(hooks)}" if hooks else str(name)


def _seconds(runs: Sequence[Run], left: Mapping[str, int], estimate: Estimate) -> float | None:
    """Seconds of a pack: one pass for all of its runs, their steps, and what measures them.

    Args:
        left: tokens that each run is yet to be trained on, by name.
    """
    config, own = runs[0].config, [_own_seconds(run, left[run.name], estimate) for run in runs]
    streams = {stream_identity(run.config): run.config for run in runs}
    passes = [estimate.activation_s(config) for config in streams.values()]
    prediction_s = estimate.prediction_s(config)
    if None in own or None in passes or prediction_s is None:
        return None
    known, a_token = [s for s in own if s is not None], [s for s in passes if s is not None]
    tokens = max(left.values()) + config.stream.calibration_tokens
    tokens += config.evaluation.tokens
    references = REFERENCES * config.evaluation.ce_tokens * prediction_s * len(streams)
    shared = tokens * max(a_token) + references
    trained = max(max(known), (sum(known) + shared) / estimate.side_by_side)
    return estimate.start_s(config) + trained


def _own_seconds(run: Run, left: int, estimate: Estimate) -> float | None:
    """Seconds that a run takes for itself, when nothing runs beside it."""
    config = run.config
    width, prediction_s = width_of(config), estimate.prediction_s(config)
    if width is None or prediction_s is None:
        return None
    steps = left // config.stream.batch_tokens
    seconds = steps * estimate.step_s(config, width) + estimate.evaluation_s(config, width)
    return seconds + config.evaluation.ce_tokens * prediction_s


def _makespan(seconds: Sequence[float], at_once: int) -> float:
    """Seconds until the last pack ends, when each begins as soon as a device is free."""
    free = [0.0] * max(1, min(at_once, len(seconds)))
    for own in seconds:
        heapq.heappush(free, heapq.heappop(free) + own)
    return max(free)


def _disk(plan: Plan, division: Division, todo: Sequence[Run]) -> Disk:
    """Bytes that the runs to train will take, and that there are."""
    sizes = {run.name: _parameters(run.config) for run in todo}
    known = [size for size in sizes.values() if size is not None]
    complete = len(known) == len(sizes)
    of_packs = [sum(sizes.get(run.name) or 0 for run in pack) for pack in division.packs]
    at_once = sum(sorted(of_packs, reverse=True)[: division.at_once])
    place = next(path for path in (plan.folder, *plan.folder.parents) if path.exists())
    return Disk(
        LEFT * sum(known) if complete else None,
        CHECKPOINTED * at_once if complete else None,
        _token_cache(todo),
        shutil.disk_usage(place).free,
    )


def _parameters(config: RunConfig) -> int | None:
    width = width_of(config)
    return None if width is None else 2 * width * config.d_sae


def _token_cache(runs: Sequence[Run]) -> int | None:
    """Bytes of token rows that are yet to be packed, once for all runs that share them."""
    sources = {str((run.config.nodes["data"], _model(run.config))): run.config for run in runs}
    own = [_cache_of(config) for config in sources.values()]
    known = [size for size in own if size is not None]
    return sum(known) if len(known) == len(own) else None


def _model(config: RunConfig) -> list[Any]:
    """What the tokenizer is a function of."""
    return [config.nodes["target_model"].get(name) for name in ("model", "revision")]


def _cache_of(config: RunConfig) -> int | None:
    """Those of one source; data whose class tells nothing pack nothing."""
    packs = own_static(config.nodes["data"][TARGET], "cache_bytes") is not None
    return told(config, "data", "cache_bytes") if packs else 0
