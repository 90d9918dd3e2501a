"""What is listed and ranked, against nested loops and stable sorts, on matrices full of ties."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.engine import ranking
from sae_sweeps.engine.ranking import (
    DENSE,
    GROUP,
    SPREAD,
    group_maxima,
    largest,
    lower_bounds,
    reaching,
    read,
    within_budgets,
)

torch.set_num_threads(1)


class Kind(NamedTuple):
    """What entries are drawn from; the fewer they are, the more are equal."""

    levels: int
    shift: float
    infinite: float
    """share of entries that are"""
    dtype: torch.dtype
    seed: int


KINDS = st.builds(
    Kind,
    levels=st.sampled_from([1, 2, 3, 5, 20, 10**6]),
    shift=st.sampled_from([-1.0, -0.5, 0.0, 0.3]),
    infinite=st.sampled_from([0.0, 0.0, 0.05]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 10**6),
)
SIZES = st.sampled_from(
    [1, 2, 3, 4, 6, 7, 8, 12, 15, 16, 17, 24, 31, 32, 48, 63, 64, 72, 96, 100, 128, 240, 256, 320]
)
"""Lengths that 16, 8, 4, 2 or only 1 divide, on both sides of what groups need."""


def matrix(rows: int, n: int, kind: Kind) -> Tensor:
    """Entries between `shift` and 1 + `shift`, in equal steps; zeros and infinities of both signs.

    What is equal in float32 is in float64.
    """
    generator = torch.Generator().manual_seed(kind.seed)
    steps = torch.randint(0, kind.levels + 1, (rows, n), generator=generator)
    values = (steps / kind.levels + kind.shift).to(kind.dtype)
    shares = [(0.0, 0.1), (-0.0, 0.1), (math.inf, kind.infinite), (-math.inf, kind.infinite)]
    for entry, share in shares:
        values[torch.rand(rows, n, generator=generator) < share] = entry
    return values


LAYOUTS = ["by row", "by column", "with gaps"]


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values, as a matrix, the transpose of one, or every second row of one."""
    if layout == "with gaps":
        return values.repeat_interleave(2, dim=0)[::2]
    return values.T.contiguous().T if layout == "by column" else values


def ranks(values: Tensor) -> list[int]:
    """Indices from the largest entry to the smallest, of equal ones the first first."""
    numbers: list[float] = values.tolist()
    return sorted(range(len(numbers)), key=lambda index: -numbers[index])


def counts(n: int) -> st.SearchStrategy[int]:
    """How many of `n` entries are wanted: few, so that there are groups; about all; too many."""
    return st.integers(1, max(1, n // SPREAD // 2)) | st.integers(1, n) | st.integers(n, 2 * n)


# ---------------------------------------------------------------- groups


@given(st.integers(1, 5), SIZES, KINDS, st.sampled_from(LAYOUTS), st.data())
def test_groups_are_as_large_as_leaves_enough_of_them(
    rows: int, n: int, kind: Kind, layout: str, data: st.DataObject
) -> None:
    count, values = data.draw(counts(n)), matrix(rows, n, kind)
    maxima = group_maxima(laid_out(values, layout), count)
    sizes = [s for s in (16, 8, 4, 2) if n % s == 0 and n // s >= SPREAD * count]
    size = max(sizes, default=1)
    assert size <= GROUP and maxima.shape == (rows, n // size) and maxima.dtype == values.dtype
    groups = n // size
    for row, found in zip(values.tolist(), maxima.tolist(), strict=True):
        assert found == [max(row[group::groups]) for group in range(groups)]


@given(st.integers(1, 6), st.integers(1, 300), KINDS, st.data())
def test_at_least_as_many_entries_as_wanted_reach_a_lower_bound(
    rows: int, groups: int, kind: Kind, data: st.DataObject
) -> None:
    most = data.draw(st.integers(1, groups) | st.integers(1, max(1, groups // SPREAD // 2)))
    budgets = data.draw(st.lists(st.integers(1, most), min_size=rows, max_size=rows))
    maxima = matrix(rows, groups, kind)
    bounds = lower_bounds(maxima, torch.tensor(budgets), most)
    assert bounds.shape == (rows, 1)
    for row, budget, bound in zip(maxima.tolist(), budgets, bounds[:, 0].tolist(), strict=True):
        assert bound in row
        assert sum(entry >= bound for entry in row) >= budget


@pytest.mark.parametrize("most", [1, 3, 8, 20])
@pytest.mark.parametrize("n", [128, 1024, 1031, 1536])
def test_few_more_entries_than_wanted_reach_a_lower_bound(n: int, most: int) -> None:
    # Without ties. Of 4 m groups about 4 m (1 - exp(-x / 4 m)) hold one of the x largest: m where
    # x is 1.15 m.
    values = torch.rand(200, n, generator=torch.Generator().manual_seed(n + most))
    budgets = torch.arange(200) % most + 1
    bounds = lower_bounds(group_maxima(values, most), budgets, most)
    excess = ((values >= bounds).sum(1) - budgets).double()
    assert excess.min() >= 0
    assert excess.mean() <= 0.2 * most + 0.1
    assert excess.max() <= most + 4


# ---------------------------------------------------------------- what reaches a bound


def bounds_for(values: Tensor, one: bool, data: st.DataObject) -> Tensor:
    """A bound for all rows or one for each: entries, what lies beside, above and below them."""
    rows, n = values.shape
    entry = st.integers(0, rows * n - 1).map(lambda place: values.flatten()[place].item())
    kinds = entry | entry.map(lambda v: math.nextafter(v, math.inf))
    kinds |= st.sampled_from([-math.inf, math.inf, 0.0, -0.0, -9.0, 9.0])
    size = 1 if one else rows
    bounds = data.draw(st.lists(kinds, min_size=size, max_size=size))
    return torch.tensor(bounds, dtype=values.dtype)[:, None]


@given(st.integers(1, 5), SIZES, KINDS, st.sampled_from(LAYOUTS), st.booleans(), st.data())
def test_what_reaches_a_bound_is_found_once(
    rows: int, n: int, kind: Kind, layout: str, one: bool, data: st.DataObject
) -> None:
    count, values = data.draw(counts(n)), matrix(rows, n, kind)
    bounds = bounds_for(values, one, data)
    seen: list[Tensor] = []

    def of(maxima: Tensor) -> Tensor:
        seen.append(maxima)
        return bounds

    found_rows, columns = reaching(laid_out(values, layout), of, count)
    wanted: list[tuple[int, int]] = []
    for row in range(rows):
        for column in range(n):
            if values[row, column] >= bounds[0 if one else row, 0]:
                wanted.append((row, column))
    assert sorted(zip(found_rows.tolist(), columns.tolist(), strict=True)) == wanted
    assert len(seen) == 1 and torch.equal(seen[0], group_maxima(values, count))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("hit", [0, 1, 15, 16, 17, 63, 64])
def test_groups_are_looked_into_or_everything_where_many_reach_their_bound(
    hit: int, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups, size = 64, 4
    values = torch.zeros(2, size * groups)
    for group in range(hit):
        values[group % 2, group // 2 + (group % size) * groups] = 1.0
    looked: list[int] = []

    def counted(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        looked.append(columns.numel())
        return read(values, rows, columns)

    monkeypatch.setattr(ranking, "read", counted)
    monkeypatch.setattr(ranking, "GROUP", size)
    bound = torch.ones(1, 1)
    rows, columns = reaching(laid_out(values, layout), lambda _: bound, 1)
    found = sorted(zip(rows.tolist(), columns.tolist(), strict=True))
    assert [list(pair) for pair in found] == values.nonzero().tolist()
    assert looked == ([] if hit > DENSE * 2 * groups else [hit * size])


@given(st.integers(1, 5), SIZES, KINDS, st.sampled_from(LAYOUTS), st.data())
def test_reading_is_indexing(
    rows: int, n: int, kind: Kind, layout: str, data: st.DataObject
) -> None:
    values, generator = matrix(rows, n, kind), torch.Generator().manual_seed(kind.seed)
    shape = data.draw(st.sampled_from([(0,), (1,), (40,), (7, 3), (0, 4)]))
    first = torch.randint(rows, shape, generator=generator)
    second = torch.randint(n, shape, generator=generator)
    found = read(laid_out(values, layout), first, second)
    assert torch.equal(found, values[first, second])
    assert torch.equal(found.signbit(), values[first, second].signbit())


# ---------------------------------------------------------------- ranking


@given(st.integers(1, 6), st.integers(0, 120), KINDS, st.data())
@example(3, 0, Kind(1, 0.0, 0.0, torch.float32, 0), None)
def test_within_budgets_are_each_rows_largest_by_a_stable_sort(
    rows: int, n: int, kind: Kind, data: st.DataObject | None
) -> None:
    values = matrix(1, n, kind)[0]
    of_row = torch.randint(rows, (n,), generator=torch.Generator().manual_seed(kind.seed))
    if data and data.draw(st.booleans()):
        of_row = of_row.sort().values
    budget = st.integers(0, n // rows + 2) | st.integers(0, n + 2)
    lists = st.lists(budget, min_size=rows, max_size=rows)
    budgets = data.draw(lists) if data else [2] * rows
    wanted = [False] * n
    for row, most in enumerate(budgets):
        places = [place for place in range(n) if of_row[place] == row]
        for rank in ranks(values[places])[:most]:
            wanted[places[rank]] = True
    kept = within_budgets(of_row, values, torch.tensor(budgets))
    assert kept.dtype == torch.bool and kept.tolist() == wanted


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_within_budgets_ranks_the_extremes_of_floats(dtype: torch.dtype) -> None:
    info = torch.finfo(dtype)
    tiny = info.smallest_normal
    numbers = [0.0, tiny, -0.0, -tiny, info.max, -info.max, math.inf, -math.inf, 1.0, -1.0]
    numbers += [1.0 + info.eps, -1.0 - info.eps, tiny / 4, -tiny / 4, -0.0, 0.0]
    values = torch.tensor(numbers, dtype=dtype)
    order = ranks(values)
    for budget in range(len(values) + 1):
        kept = within_budgets(torch.zeros(len(values)).long(), values, torch.tensor([budget]))
        assert kept.nonzero()[:, 0].tolist() == sorted(order[:budget])


@given(st.integers(1, 100), KINDS, st.data())
def test_the_largest_are_those_of_a_stable_sort(n: int, kind: Kind, data: st.DataObject) -> None:
    values = matrix(1, n, kind)[0]
    budget = data.draw(st.integers(0, n))
    kept = largest(values, budget)
    assert kept.dtype == torch.bool and kept.shape == (n,)
    assert kept.nonzero()[:, 0].tolist() == sorted(ranks(values)[:budget])


def test_of_equal_entries_the_first_are_taken() -> None:
    values = torch.tensor([0.5, 1.0, 0.5, -1.0, 0.5, 0.0, -0.0, 0.5])
    wanted = {3: [0, 1, 2], 6: [0, 1, 2, 4, 5, 7], 0: [], 8: list(range(8))}
    row = torch.zeros(8, dtype=torch.int64)
    for budget, places in wanted.items():
        assert largest(values, budget).nonzero()[:, 0].tolist() == places
        kept = within_budgets(row, values, torch.tensor([budget]))
        assert kept.nonzero()[:, 0].tolist() == places


@given(st.integers(1, 4), SIZES, KINDS, st.sampled_from(LAYOUTS), st.data())
def test_bounds_lists_and_budgets_together_are_a_stable_sort_of_each_row(
    rows: int, n: int, kind: Kind, layout: str, data: st.DataObject
) -> None:
    most = data.draw(st.integers(1, n) | st.integers(1, max(1, n // SPREAD // 2)))
    budgets = torch.tensor(data.draw(st.lists(st.integers(1, most), min_size=rows, max_size=rows)))
    values = matrix(rows, n, kind)
    found_rows, columns = reaching(
        laid_out(values, layout), lambda maxima: lower_bounds(maxima, budgets, most), most
    )
    flat = (found_rows * n + columns).sort().values
    kept = within_budgets(flat // n, values.flatten()[flat], budgets)
    wanted = [
        row * n + column
        for row, budget in enumerate(budgets.tolist())
        for column in sorted(ranks(values[row])[:budget])
    ]
    assert flat[kept].tolist() == wanted
