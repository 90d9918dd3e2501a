"""Running averages with a horizon in tokens."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TokenAverage(nn.Module):
    """Exponential average of a vector of which only some entries are known at each step.

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
