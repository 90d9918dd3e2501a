"""What lets an allocator that ranks a batch work without one: thresholds learnt from batches.

The averaging follows arXiv 2412.06410; the common level is our design.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_sweeps.engine.acts import Listed
from sae_sweeps.engine.averages import TokenAverage

RATE = 0.5
"""Share of the mismatch between batch-free and batch L0 that the level takes in per horizon."""
ELASTICITY = 6.0
"""Change of log L0 per change of log threshold, about; measured on the embedded model."""


class LearntThreshold(nn.Module):
    """Affinities above which pairs are active without a batch; one, or one per latent.

    level * average of the smallest affinity kept per batch. Such averages lag behind training and
    cut off a little too much; the level is steered, batch by batch, until as many pairs pass as the
    batch allocation keeps. +inf where nothing was ever kept.
    """

    log_level: Tensor

    def __init__(self, size: int, horizon_tokens: int) -> None:
        super().__init__()
        self.horizon_tokens = horizon_tokens
        self.smallest = TokenAverage(size, horizon_tokens, missing=torch.inf)
        self.register_buffer("log_level", torch.zeros(()))

    def value(self) -> Float[Tensor, " size"]:
        """The thresholds."""
        return self.smallest.value() * self.log_level.exp()

    def passing(self, found: Listed, d_sae: int) -> Int[Tensor, ""]:
        """How many of the pairs found would be active without a batch."""
        threshold = self.value()
        if len(threshold) > 1:
            threshold = threshold.index_select(0, found.flat % d_sae)
        return (found.affinities > threshold).count_nonzero()

    def update(self, selection: Listed, smallest: Float[Tensor, " size"], tokens: int) -> None:
        """Take in a batch of so many tokens, and the choice that was made in it.

        The `smallest` affinities kept, of those above 0, are +inf where there was none.
        """
        assert selection.passed is not None
        kept = (selection.affinities > 0).count_nonzero()
        ratio = (selection.passed.clamp(min=1) / kept.clamp(min=1)).log().clamp(-1, 1)
        # However short the horizon, a batch never corrects more than the mismatch itself.
        gain = -math.expm1(-ELASTICITY * RATE * tokens / self.horizon_tokens) / ELASTICITY
        self.log_level += ratio * gain * self.smallest.weight.any()  # else there is no threshold
        known = smallest < torch.inf
        self.smallest.update(smallest.nan_to_num(0.0, posinf=0.0), known, tokens)

    def restart(self) -> None:
        """Let the next averages replace these at once, wherever there are any."""
        self.smallest.total *= 1e-3
        self.smallest.weight *= 1e-3

    def rescale(self, factor: float) -> None:
        """Adapt to affinities multiplied by `factor`."""
        self.smallest.total *= factor
