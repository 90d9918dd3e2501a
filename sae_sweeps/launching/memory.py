"""How much of an accelerator's memory runs take: arithmetic, without torch or a device.

`tests/gpu` counts what a run takes on fake tensors, for every method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET
from sae_sweeps.config.source import own_static
from sae_sweeps.engine.listing import max_listed
from sae_sweeps.record.identity import stream_identity
from sae_sweeps.record.run import Run

FILLED = 0.85
"""Share of the memory that packs are planned to fill: it is never in one piece."""
CONTEXT = 600 * 10**6
"""Bytes of a process that uses the device at all (estimated)."""
CHUNKS = 3
"""Chunks of a stream at a time: one that is trained on, the next, and what it is made of."""
UNKNOWN, UNKNOWN_LISTED = 13.0, 2.0
"""Matrices of an architecture that does not tell: as many as those that need most."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a run."""

    held: int
    """From its first step to its end: weights, Adam's moments, weights rounded to bfloat16."""
    step: int
    """At the peak of a step beyond that; runs of a pack take theirs one after the other."""


def of_run(config: RunConfig, d_in: int, device: str = "cuda") -> Memory:
    """Bytes of a run whose latents read and write activations of width `d_in`."""
    parameters = 2 * d_in * config.d_sae
    activations = 4 * config.stream.batch_tokens
    matrix, listed = activations * config.d_sae, _is_listed(config, device)
    rounded = config.training.precision != "float32"
    held = 12 * parameters + (parameters if listed else 2 * parameters) * rounded
    most = _matrices(config, listed) * matrix
    if listed:  # the peak comes with the selection, or when gradients are projected
        unit_norm = config.nodes["architecture"].get("unit_norm", True)
        projecting = (0.5 if rounded else 1.0) * matrix + (6 if unit_norm else 4) * parameters
        return Memory(held, int(max(most, projecting) + 2 * activations * d_in))
    return Memory(held, int(most + 3 * parameters + 2 * activations * d_in))


def _is_listed(config: RunConfig, device: str) -> bool:
    """Whether an allocator sets how many pairs there are, and they are few."""
    k = config.nodes["allocator"].get("k")
    share = max_listed(config.engine, device, config.d_sae)
    return k is not None and k <= share * config.d_sae


def _matrices(config: RunConfig, listed: bool) -> float:
    told = own_static(config.nodes["architecture"][TARGET], "matrices")
    if told is None:
        return UNKNOWN_LISTED if listed else UNKNOWN
    return told(config.tree, listed)


def of_pack(runs: Sequence[Run]) -> int | None:
    """Bytes of a pack, the target model included; None where no width is known before it is here.

    Weights on disk may be those of a larger type than the model is loaded in.
    """
    first, most, total = runs[0].config, 0, CONTEXT
    streams: dict[str, int] = {}
    for run in runs:
        width = width_of(run.config)
        if width is None:
            return None
        streams[stream_identity(run.config)] = width
        memory = of_run(run.config, width)
        total, most = total + memory.held, max(most, memory.step)
    tokens = CHUNKS * first.stream.chunk_tokens + first.evaluation.tokens
    total += sum(4 * tokens * width for width in streams.values())
    return total + most + (_told(first, "weight_bytes") or 0)


def fitting(room: int | None) -> Callable[[Sequence[Run]], bool]:
    """Whether a pack fits into a device's memory of so many bytes; yes where that is not known."""

    def fits(runs: Sequence[Run]) -> bool:
        needed = of_pack(runs) if room is not None else None
        return room is None or needed is None or needed <= FILLED * room

    return fits


def width_of(config: RunConfig) -> int | None:
    """Width of a run's activations, if its target model tells before it is loaded."""
    return _told(config, "width")


def _told(config: RunConfig, name: str) -> int | None:
    """What the target model's class tells of a config, if it does."""
    told: Callable[[Any], int | None] | None = own_static(
        config.nodes["target_model"][TARGET], name
    )
    return told(config.tree) if told else None
