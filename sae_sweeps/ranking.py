"""The largest entries, exactly, and with one answer where entries are equal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

GROUP = 16
"""Entries of which the largest is looked at first."""
ROWS = 128
"""Rows ranked at a time, so that they stay in a cache."""
SAMPLE = 200_000
"""Entries that are looked at for a bound which somewhat more than enough others exceed."""
SPARE, SPARE_ENTRIES = 1.2, 16
"""How many more: a share, and a number for samples of which few are wanted."""


def largest_of_rows(
    values: Float[Tensor, "rows n"], budgets: Int[Tensor, " rows"], most: int
) -> Int[Tensor, "rows most"]:
    """Indices of each row's largest entries; the first `budgets[row]` are to be used.

    Budgets are from 1 to `most`. Of equal positive entries the first ones are taken; on
    accelerators, where to look for them would mean to wait, any.
    """
    n = values.shape[1]
    top, indices = topk(values, min(most + 1, n))
    indices = indices[:, :most]
    if values.device.type == "cpu":
        padded = F.pad(top, (0, 1), value=-torch.inf)
        last, next_one = padded.gather(1, torch.stack([budgets - 1, budgets], 1)).unbind(1)
        tied = ((last == next_one) & (last > 0)).nonzero().squeeze(1)
        if len(tied):
            ordered = values.index_select(0, tied).sort(dim=1, descending=True, stable=True).indices
            indices[tied] = ordered[:, :most]
    return indices


def topk(
    values: Float[Tensor, "rows n"], count: int
) -> tuple[Float[Tensor, "rows count"], Int[Tensor, "rows count"]]:
    """values.topk(count, dim=1), on CPUs by way of the groups with the largest maxima.

    None of the others has anything to add, and a maximum costs less than a rank.
    """
    n = values.shape[1]
    if values.device.type != "cpu" or 2 * count > n // GROUP:
        top = values.topk(count, dim=1)
        return top.values, top.indices
    found = [_of_groups(part, count) for part in values.split(ROWS)]
    top, indices = zip(*found, strict=True)
    return torch.cat(top), torch.cat(indices)


def _of_groups(values: Float[Tensor, "rows n"], count: int) -> tuple[Tensor, Tensor]:
    if short := -values.shape[1] % GROUP:
        values = F.pad(values, (0, short), value=-torch.inf)
    rows, n = values.shape
    groups = values.view(rows, GROUP, n // GROUP)  # a group's members lie n // GROUP apart
    best = groups.amax(1).topk(count, dim=1, sorted=False).indices
    members = groups.gather(2, best[:, None].expand(-1, GROUP, -1)).flatten(1)
    top = members.topk(count, dim=1)
    member = torch.div(top.indices, count, rounding_mode="floor")
    return top.values, member * (n // GROUP) + best.gather(1, top.indices % count)


def largest(
    values: Float[Tensor, " n"], budget: int, guess: Float[Tensor, ""] | None
) -> Int[Tensor, " budget"]:
    """Indices, ascending, of the `budget` largest entries; of equal ones the first.

    Ranking all entries costs more than the encoder. Where at least `budget` of them lie above
    `guess`, or a bound that a sample suggests, only these are ranked: the choice is the same.
    Accelerators rank all, since the number of candidates would have to be waited for; of equal ones
    they take any.
    """
    if values.device.type != "cpu" or budget == 0:
        return values.topk(budget, sorted=False).indices.sort().values
    candidates = _candidates(values, budget, guess)
    ranked = values[candidates]
    least = ranked.topk(budget, sorted=False).values.min()
    kept = ranked > least
    kept[(ranked == least).nonzero()[: budget - int(kept.sum())]] = True
    return candidates[kept]


def _candidates(
    values: Float[Tensor, " n"], budget: int, guess: Float[Tensor, ""] | None
) -> Int[Tensor, " m"]:
    """Indices of at least the `budget` largest entries, of all the equal ones among them too."""
    if guess is not None:
        above = (values > guess).nonzero().squeeze(1)
        if len(above) >= budget:
            return above
    sample = values[:: len(values) // SAMPLE | 1]
    count = min(int(SPARE * budget * len(sample) / len(values)) + SPARE_ENTRIES, len(sample))
    above = (values >= sample.topk(count, sorted=False).values.min()).nonzero().squeeze(1)
    return above if len(above) >= budget else torch.arange(len(values))
