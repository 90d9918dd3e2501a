"""The largest entries, exactly, and with one answer where entries are equal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

GROUP = 16
"""Entries of which the largest is looked at first."""
ROWS = 128
"""Rows ranked at a time, so that they stay in a cache."""


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
    `guess`, only these are ranked: the choice is the same. Accelerators rank all, since the number
    of candidates would have to be waited for; of equal ones they take any.
    """
    if values.device.type != "cpu" or budget == 0:
        return values.topk(budget, sorted=False).indices.sort().values
    candidates = values[:0].long() if guess is None else (values > guess).nonzero().squeeze(1)
    if len(candidates) < budget:
        candidates = torch.arange(len(values))
    ranked = values[candidates]
    least = ranked.topk(budget, sorted=False).values.min()
    kept = ranked > least
    kept[(ranked == least).nonzero()[: budget - int(kept.sum())]] = True
    return candidates[kept]
