"""Which entries of a matrix are the largest: exactly, and with one answer where some are equal.

To rank all entries costs more than the encoder. Here the rows' entries that reach a bound are
listed, by way of the maxima of groups; only these are ranked. How many they are has to be known,
for which an accelerator would have to be waited for: there `topk` ranks everything.
"""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

GROUP = 16
"""Entries at most of which the largest is looked at first."""
SPREAD = 4
"""Groups per entry wanted: with fewer, too many of the largest would share one."""
DENSE = 1 / 4
"""Share of groups that reach their bound from which all entries are looked at instead."""


def reaching(
    values: Float[Tensor, "rows n"],
    bounds_of: Callable[[Float[Tensor, "rows groups"]], Float[Tensor, "_ 1"]],
    count: int,
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """Rows and columns of the entries that are at least their row's bound, or one, in no order.

    `bounds_of` makes the bounds from maxima of groups, of which there are many more than `count`
    where a row is long enough; else these are the entries themselves.
    """
    maxima = group_maxima(values, count)
    bounds = bounds_of(maxima).expand(len(values), 1)
    hit = maxima >= bounds
    groups = maxima.shape[1]
    size = values.shape[1] // groups
    rows, firsts = _places(hit)
    if size == 1:
        return rows, firsts
    if len(rows) > DENSE * hit.numel():
        return _places(values >= bounds)
    # A group's members lie `groups` apart.
    columns = firsts[:, None] + torch.arange(size, device=values.device) * groups
    members = read(values, rows[:, None], columns)
    chosen, member = _places(members >= bounds.index_select(0, rows))
    return rows.index_select(0, chosen), firsts.index_select(0, chosen) + member * groups


def read(
    values: Float[Tensor, "rows n"], rows: Int[Tensor, "..."], columns: Int[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """values[rows, columns], several times as fast."""
    by_column = values.T.is_contiguous()
    stored = values.T if by_column else values
    outer, inner = (columns, rows) if by_column else (rows, columns)
    return stored.flatten().take(outer * stored.shape[1] + inner)


def group_maxima(values: Float[Tensor, "rows n"], count: int) -> Float[Tensor, "rows groups"]:
    """The largest of each group of entries, groups as large as leaves SPREAD * count of them."""
    n, size = values.shape[1], GROUP
    while size > 1 and (n % size or n // size < SPREAD * count):
        size //= 2
    if size == 1:
        return values
    if values.is_contiguous():
        return values.unflatten(1, (size, n // size)).amax(1)
    return values.T.unflatten(0, (size, n // size)).amax(0).T  # as it is stored


def lower_bounds(
    maxima: Float[Tensor, "rows groups"], budgets: Int[Tensor, " rows"], most: int
) -> Float[Tensor, "rows 1"]:
    """A number for each row that at least as many entries as its budget reach, and few more.

    That is the smallest of the `budget` largest maxima: each stands for another entry. `most` is
    the largest budget, at most the number of groups.
    """
    groups = maxima.shape[1]
    merged = groups // max(SPREAD * most, 1)
    if merged > 1:
        kept = groups - groups % merged
        maxima = maxima[:, :kept].unflatten(1, (merged, kept // merged)).amax(1)
    return maxima.topk(most, dim=1).values.gather(1, budgets[:, None] - 1)


def lowered(
    bounds: Float[Tensor, "rows 1"],
    maxima: Float[Tensor, "rows groups"],
    budgets: Int[Tensor, " rows"],
) -> Float[Tensor, "rows 1"]:
    """Bounds that as many entries reach as a row's budget, where the groups are enough to tell."""
    bounds = bounds.clone()
    few = (maxima >= bounds).sum(1) < budgets
    for most, rows in classes(budgets.where(few, 0), maxima.shape[1] // SPREAD):
        own = lower_bounds(maxima.index_select(0, rows), budgets.index_select(0, rows), most)
        bounds.index_copy_(0, rows, own.to(bounds.dtype))
    return bounds


def classes(
    budgets: Int[Tensor, " rows"], highest: int, factor: int = 2
) -> Iterator[tuple[int, Int[Tensor, " some"]]]:
    """Rows by the size of their budget, from 1 to `highest`, and the largest that one may have.

    By powers of `factor`, so that no row is ranked further than so many times its need.
    """
    least = 1
    while least <= highest:
        most = min(factor * least - 1, highest)
        rows = ((budgets >= least) & (budgets <= most)).nonzero().squeeze(1)
        if len(rows):
            yield most, rows
        least *= factor


def within_budgets(
    rows: Int[Tensor, " n"], values: Float[Tensor, " n"], budgets: Int[Tensor, " rows"]
) -> Bool[Tensor, " n"]:
    """Which entries, in any order of rows, are among their row's `budgets[row]` largest.

    Of equal ones the first are taken.
    """
    by_value = _descending(values)
    by_row = rows.index_select(0, by_value).sort(stable=True)
    counts = torch.bincount(rows, minlength=len(budgets))
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(rows), device=rows.device) - starts.index_select(0, by_row.values)
    inside = by_value.index_select(0, by_row.indices)
    kept = torch.zeros_like(rows, dtype=torch.bool)
    return kept.index_put((inside,), place < budgets.index_select(0, by_row.values))


def largest(values: Float[Tensor, " n"], budget: int) -> Bool[Tensor, " n"]:
    """Which entries are the `budget` largest; of equal ones the first."""
    if budget == 0:
        return torch.zeros_like(values, dtype=torch.bool)
    least = values.topk(budget, sorted=False).values.amin()
    kept, equal = values > least, (values == least).nonzero().squeeze(1)
    kept[equal[: budget - int(kept.sum())]] = True
    return kept


def _places(mask: Bool[Tensor, "rows n"]) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """Rows and columns where a mask is true, read in the order in which it is stored."""
    by_column = not mask.is_contiguous()
    stored = mask.T if by_column else mask
    flat = stored.flatten().nonzero().squeeze(1)
    outer = torch.div(flat, stored.shape[1], rounding_mode="floor")
    inner = flat - outer * stored.shape[1]
    return (inner, outer) if by_column else (outer, inner)


def _descending(values: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """values.argsort(descending=True, stable=True); as integers, whose order is that of floats.

    PyTorch sorts integers ten times as fast, digit by digit.
    """
    if values.dtype == torch.float64:
        return values.argsort(descending=True, stable=True)
    bits = (values.float() + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    return (~(bits ^ ((bits >> 31) & 0x7FFFFFFF))).argsort(stable=True)
