"""Whether budgets fill a slot, a token-latent pair of a batch; before anything starts, no torch.

A budget below one slot a batch leaves latents dead, unless it is drawn.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any


def budget_fills_a_slot(config: Mapping[str, Any]) -> Iterator[str]:
    """A whole batch has one latent at least, where the allocator's `k` is a mean over it."""
    k, batch = config["allocator"]["k"], config["stream"]["batch_tokens"]
    if round(k * batch) < 1:
        yield (
            f"allocator.k is {k:.12g}: with stream.batch_tokens {batch} that is no "
            "latent in a whole batch; give a larger k or larger batches."
        )


def zipf_fills_a_slot(config: Mapping[str, Any]) -> Iterator[str]:
    """So has the rarest latent, where the allocator's budgets follow `exponent` and `shift`."""
    node, batch = config["allocator"], config["stream"]["batch_tokens"]
    density = rarest_density(config["d_sae"], node["k"], node["exponent"], node["shift"])
    needed = math.ceil(1 / density - 1e-9) if density > 0 else math.inf
    if batch < needed and node.get("rounding") != "stochastic":
        larger = f"stream.batch_tokens={needed} or more, or " if density > 0 else ""
        drawn = ", or allocator.rounding=stochastic" if "rounding" in node else ""
        yield (
            f"stream.batch_tokens is {batch}: the rarest latent would get "
            f"{density * batch:.2g} tokens of a batch, and needs 1. Allowed is "
            f"{larger}a larger k or allocator.shift, or a smaller d_sae or "
            f"allocator.exponent{drawn}."
        )


@cache
def rarest_density(d_sae: int, k: int | float, exponent: int | float, shift: int | float) -> float:
    """Return the least of the densities min(1, C (rank + shift)^-exponent), which sum to k."""
    import numpy as np  # here, since most configs have no use for it

    weights = (np.arange(1, d_sae + 1) + shift) ** -exponent
    rest = weights[::-1].cumsum()[::-1]  # rest[n]: what follows the first n ranks
    budget = k - np.arange(d_sae)  # what the first n ranks leave when they take every token
    capped = int(np.argmax(budget * weights <= rest))
    return float(budget[capped] * weights[-1] / rest[capped]) if rest[capped] > 0 else 0.0
