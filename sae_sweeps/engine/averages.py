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
        self, values: Float[Tensor, " size"], known: Bool[Tensor, " size"] | None, tokens: int
    ) -> None:
        """Take in the known entries of `values`, all where None, seen on `tokens` tokens."""
        keep = math.exp(-tokens / self.horizon_tokens)
        kept, given = keep * self.total, (1 - keep) * values
        if known is None:
            torch.add(kept, given, out=self.total)
            torch.add(keep * self.weight, 1 - keep, out=self.weight)
            return
        torch.where(known, kept + given, self.total, out=self.total)
        torch.where(known, keep * self.weight + (1 - keep), self.weight, out=self.weight)

    def value(self) -> Float[Tensor, " size"]:
        """The averages."""
        # Where nothing is known it is 0 / 0.
        averages = self.total / self.weight
        return averages.nan_to_num(self.missing, torch.inf, -torch.inf)
