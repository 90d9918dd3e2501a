"""Zipf's law with Mandelbrot's shift: firing densities and whole budgets by rank."""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

UNIT = 2**20
"""Parts of a slot that `Budgets.systematic` counts in."""


def zipf_densities(
    d_sae: int, l0: float | Float[Tensor, ""], exponent: float, shift: float
) -> Float[Tensor, " d_sae"]:
    """min(1, l0 * (rank + shift)^-exponent / sum): expected share of tokens of ranks 1 to d_sae.

    float32, on the device of `l0`."""
    device = l0.device if isinstance(l0, Tensor) else torch.device("cpu")
    return (l0 * _shares(d_sae, exponent, shift, device)).clamp(max=1)


@lru_cache(maxsize=64)
def _shares(
    d_sae: int, exponent: float, shift: float, device: torch.device
) -> Float[Tensor, " d_sae"]:
    """(rank + shift)^-exponent / sum; relative to rank 1, so that no large exponent makes all 0."""
    rank = torch.arange(1, d_sae + 1, dtype=torch.float64) + shift
    weight = (rank[0] / rank) ** exponent
    return (weight / weight.sum()).float().to(device)


@dataclass(frozen=True)
class Budgets:
    """Tokens of a batch that each rank may keep, and two ways to make them whole numbers.

    Both round each budget up or down, and keep their sum.
    """

    exact: Float[Tensor, " d_sae"]
    """float64; the sum is a whole number up to rounding errors"""

    @cached_property
    def largest_remainder(self) -> Int[Tensor, " d_sae"]:
        """What lies furthest above a whole number is rounded up; of equals the lower rank."""
        return _largest_remainder(self.exact, round(self.exact.sum().item()))

    def systematic(self, u: float) -> Int[Tensor, " d_sae"]:
        """floor(c_r + u) - floor(c_(r-1) + u), c the cumulative sum: right on average.

        For uniform `u` in [0, 1) the mean of a rank's budget is the exact one, to 1 / UNIT.
        """
        slots = torch.div(self._fractions + int(u * UNIT), UNIT, rounding_mode="floor")
        return self.exact.floor().long() + slots.diff(prepend=slots.new_zeros(1))

    @cached_property
    def _fractions(self) -> Int[Tensor, " d_sae"]:
        """Cumulative sum of what flooring cuts off, in whole units, so that no slot is lost."""
        whole = self.exact.floor()
        slots = round(self.exact.sum().item() - whole.sum().item())
        return _largest_remainder((self.exact - whole) * UNIT, slots * UNIT).cumsum(0)


@lru_cache(maxsize=64)
def zipf_budgets(d_sae: int, batch: int, k: float, exponent: float, shift: float) -> Budgets:
    """min(batch, C * (rank + shift)^-exponent) for ranks 1 to d_sae.

    C is found by water-filling: what the cap at `batch` cuts off goes to the others in proportion,
    until all budgets sum to round(k * batch), or all are capped. Exponent 0 is the uniform budget,
    shift 0 plain Zipf.
    """
    total = round(k * batch)
    rank = torch.arange(1, d_sae + 1, dtype=torch.float64) + shift
    budget = torch.full_like(rank, batch)
    capped = 0
    while capped < d_sae:
        # Relative to the first rank that is not capped: a large exponent leaves that one a share.
        share = (rank[capped] / rank[capped:]) ** exponent
        budget[capped:] = share * ((total - capped * batch) / share.sum())
        over = int((budget > batch).sum())
        if over == 0:
            break
        capped += over
        budget[:capped] = batch
    return Budgets(budget)


def _largest_remainder(values: Float[Tensor, " n"], total: int) -> Int[Tensor, " n"]:
    whole = values.floor()
    short = total - int(whole.sum())
    order = (values - whole).argsort(descending=True, stable=True)
    whole[order[:short]] += 1
    return whole.long()
