"""The largest entries, exactly, and with one answer where entries are equal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def largest_of_rows(
    values: Float[Tensor, "rows n"], budgets: Int[Tensor, " rows"], most: int
) -> Int[Tensor, "rows most"]:
    """Indices of each row's largest entries; the first `budgets[row]` are to be used.

    Budgets are from 1 to `most`. Of equal positive entries the first ones are taken; on
    accelerators, where to look for them would mean to wait, any.
    """
    n = values.shape[1]
    top = values.topk(min(most + 1, n), dim=1)
    indices = top.indices[:, :most]
    if values.device.type == "cpu":
        padded = F.pad(top.values, (0, 1), value=-torch.inf)
        last, next_one = padded.gather(1, torch.stack([budgets - 1, budgets], 1)).unbind(1)
        tied = ((last == next_one) & (last > 0)).nonzero().squeeze(1)
        if len(tied):
            ordered = values[tied].sort(dim=1, descending=True, stable=True).indices
            indices[tied] = ordered[:, :most]
    return indices


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
