"""How much of an accelerator's memory runs take: arithmetic, without torch or a device.

`tests/gpu` counts the same on fake tensors, for every method.
"""

from dataclasses import dataclass

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET
from sae_sweeps.config.source import own_static
from sae_sweeps.engine.listing import max_listed

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
