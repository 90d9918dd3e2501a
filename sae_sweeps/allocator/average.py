"""Averages with a horizon in tokens, corrected for their short beginning."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

RATE = 0.5
"""Share of the mismatch taken in per horizon; L0 answers a threshold about sixfold."""


class TokenAverage(nn.Module):
    """Exponential average of vectors of which only some entries are known at each step.

    An entry forgets at the rate exp(-tokens / horizon_tokens) whenever it is known. Dividing by the
    summed weights corrects the bias of a short history; an entry never known is `missing`.
    """

    total: Tensor
    weight: Tensor

    def __init__(self, size: int, horizon_tokens: int, missing: float) -> None:
        super().__init__()
        self.horizon_tokens, self.missing = horizon_tokens, missing
        self.register_buffer("total", torch.zeros(size))
        self.register_buffer("weight", torch.zeros(size))

    def update(
        self, values: Float[Tensor, " size"], known: Bool[Tensor, " size"], tokens: int
    ) -> None:
        """Take in the known entries of `values`, seen on `tokens` tokens."""
        keep = math.exp(-tokens / self.horizon_tokens)
        total = keep * self.total + (1 - keep) * values
        weight = keep * self.weight + (1 - keep)
        self.total.copy_(torch.where(known, total, self.total))
        self.weight.copy_(torch.where(known, weight, self.weight))

    def value(self) -> Float[Tensor, " size"]:
        """The averages."""
        known = self.weight > 0
        return torch.where(known, self.total / self.weight.clamp(min=1e-30), self.missing)


class ThresholdLevel(nn.Module):
    """A factor on all thresholds: as many pairs pass them as the batch allocation keeps.

    Averages of batch minima lag behind training and cut off a little too much; the factor is
    steered, batch by batch, until batch-free and batch L0 agree. Our design.
    """

    log_level: Tensor

    def __init__(self, horizon_tokens: int) -> None:
        super().__init__()
        self.horizon_tokens = horizon_tokens
        self.register_buffer("log_level", torch.zeros(()))

    def update(self, passed: Int[Tensor, ""], kept: Int[Tensor, ""], tokens: int) -> None:
        """Take in how many pairs of a batch passed, and how many the allocation kept."""
        ratio = (passed.clamp(min=1) / kept.clamp(min=1)).log().clamp(-1, 1)
        self.log_level += ratio * (RATE * tokens / self.horizon_tokens)

    def value(self) -> Tensor:
        """The factor, a scalar."""
        return self.log_level.exp()
