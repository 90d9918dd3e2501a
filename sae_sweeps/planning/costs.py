"""What a training step takes of an accelerator, by the run's config: no torch, no device.

`tests/gpu` counts the same on fake tensors, for every architecture.
"""

from typing import NamedTuple

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET
from sae_sweeps.config.source import own_static
from sae_sweeps.engine.listing import max_listed


class Cost(NamedTuple):
    """In units of the one product and the one matrix that no SAE is without.

    An architecture's static method `cost` tells them, of listed pairs and of whole matrices.
    """

    listed: bool
    """whether an allocator sets how many pairs there are, and they are few"""
    matrices: float
    """float32 matrices [batch, d_sae] at the peak of a step"""
    products: float
    """products as large as [batch, d_in] @ [d_in, d_sae]"""
    passes: float
    """times that as much as one such matrix is read or written, products and pairs aside"""


UNKNOWN = Cost(False, 13.0, 8, 90), Cost(True, 2.0, 1, 18)
"""Of an architecture that does not tell, without and with listed pairs: those of the dearest."""


def of_step(config: RunConfig, device: str) -> Cost:
    """The cost of a step on a kind of device."""
    k = config.nodes["allocator"].get("k")
    listed = k is not None and k <= max_listed(config.engine, device, config.d_sae) * config.d_sae
    told = own_static(config.nodes["architecture"][TARGET], "cost")
    return Cost(listed, **told(config.tree, listed)) if told else UNKNOWN[listed]
