"""The largest entries against stable sorts, on matrices full of ties."""

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.allocator.feature_choice import feature_choice
from sae_sweeps.allocator.mutual_choice import mutual_choice
from sae_sweeps.allocator.token_choice import token_choice
from sae_sweeps.ranking import GROUP, largest, largest_of_rows

torch.set_num_threads(1)


class Kind(NamedTuple):
    """What entries are drawn from; the fewer they are, the more are equal."""

    levels: int
    shift: float
    seed: int


KINDS = st.builds(
    Kind,
    levels=st.sampled_from([1, 2, 3, 5, 20, 10**6]),
    shift=st.sampled_from([-1.0, -0.5, 0.0, 0.3]),
    seed=st.integers(0, 10**6),
)


def matrix(rows: int, n: int, kind: Kind) -> Tensor:
    """Entries between `shift` and 1 + `shift`, in equal steps; zeros of both signs."""
    generator = torch.Generator().manual_seed(kind.seed)
    steps = torch.randint(0, kind.levels + 1, (rows, n), generator=generator)
    values = steps / kind.levels + kind.shift
    values[torch.rand(rows, n, generator=generator) < 0.1] = 0.0
    values[torch.rand(rows, n, generator=generator) < 0.1] = -0.0
    return values


def laid_out(values: Tensor, by_column: bool) -> Tensor:
    return values.T.contiguous().T if by_column else values


def ranks(values: Tensor) -> list[int]:
    """Indices from the largest entry to the smallest, of equal ones the first first."""
    return values.sort(descending=True, stable=True).indices.tolist()


SIZES = st.sampled_from([1, 2, 15, 16, 17, 32, 48, 63, 64, 65, 96, 128, 240, 256, 320])


@given(st.integers(1, 4), SIZES, KINDS, st.booleans(), st.data())
def test_rows_largest_are_those_of_a_stable_sort(
    rows: int, n: int, kind: Kind, by_column: bool, data: st.DataObject
) -> None:
    # Both sides of the way by the groups, which is taken where 2 * (most + 1) <= n / GROUP.
    small = st.integers(1, max(1, n // GROUP // 2))
    most = data.draw(st.integers(1, n) | small.map(lambda count: min(count, n)))
    budgets = data.draw(st.lists(st.integers(1, most), min_size=rows, max_size=rows))
    values = matrix(rows, n, kind)
    found = largest_of_rows(laid_out(values, by_column), torch.tensor(budgets), most)
    assert found.shape == (rows, most)
    for row, budget, indices in zip(values, budgets, found.tolist(), strict=True):
        kept, wanted = indices[:budget], ranks(row)[:budget]
        assert len(set(kept)) == budget
        assert sorted(row[kept].tolist()) == sorted(row[wanted].tolist())
        if row[wanted[-1]] > 0:
            assert sorted(kept) == sorted(wanted)


@pytest.mark.parametrize("n", [64, 256, 1024])
@pytest.mark.parametrize("rows", [1, 127, 129, 300])
def test_many_rows_are_ranked_like_few(rows: int, n: int) -> None:
    values = matrix(rows, n, Kind(200, -0.3, 5))
    budgets = torch.arange(rows) % 7 + 1
    most = 7
    found = largest_of_rows(values, budgets, most)
    for row, budget, indices in zip(values, budgets.tolist(), found.tolist(), strict=True):
        assert sorted(indices[:budget]) == sorted(ranks(row)[:budget])


@given(st.integers(1, 100), KINDS, st.data())
def test_the_largest_are_those_of_a_stable_sort(n: int, kind: Kind, data: st.DataObject) -> None:
    values = matrix(1, n, kind)[0]
    budget = data.draw(st.integers(0, n))
    ordered = values[ranks(values)].tolist()
    boundary = ordered[budget - 1] if budget else 0.0
    guess = data.draw(
        st.none()
        | st.sampled_from(
            [
                -math.inf,
                math.inf,
                ordered[-1] - 1.0,  # far too low
                ordered[-1],
                math.nextafter(boundary, -math.inf),
                boundary,  # exact: those equal to it are no candidates
                ordered[0],
                ordered[0] + 1.0,  # far too high
            ]
        )
        | st.floats(-1.5, 1.5)
    )
    found = largest(values, budget, None if guess is None else torch.tensor(guess))
    assert found.dtype == torch.int64
    assert found.tolist() == sorted(ranks(values)[:budget])


@pytest.mark.parametrize("guess", [None, -1.0, 0.0, 0.5, 1.0, math.inf])
def test_of_equal_entries_the_first_are_taken(guess: float | None) -> None:
    values = torch.tensor([0.5, 1.0, 0.5, -1.0, 0.5, 0.0, -0.0, 0.5])
    tensor = None if guess is None else torch.tensor(guess)
    assert largest(values, 3, tensor).tolist() == [0, 1, 2]
    assert largest(values, 6, tensor).tolist() == [0, 1, 2, 4, 5, 7]
    assert largest(values, 0, tensor).tolist() == []
    assert largest(values, 8, tensor).tolist() == list(range(8))


# ---------------------------------------------------------------- the three choices


def naive_token(affinities: Tensor, k: int) -> list[int]:
    n = affinities.shape[1]
    return sorted(t * n + i for t, row in enumerate(affinities) for i in ranks(row)[:k])


def naive_mutual(affinities: Tensor, budget: int) -> list[int]:
    return sorted(ranks(affinities.flatten())[:budget])


def naive_feature(affinities: Tensor, budgets: list[int]) -> list[int]:
    n = affinities.shape[1]
    columns = enumerate(zip(affinities.T, budgets, strict=True))
    return sorted(t * n + i for i, (column, m) in columns for t in ranks(column)[:m])


def assert_chosen(affinities: Tensor, found: Tensor, wanted: list[int]) -> None:
    """The same pairs, those that are not positive aside: whichever of these is kept is silent."""
    flat = affinities.flatten()
    assert (found.diff() > 0).all() and len(found) == len(wanted)
    positive = [index for index in found.tolist() if flat[index] > 0]
    assert positive == [index for index in wanted if flat[index] > 0]
    assert sorted(flat[found].tolist()) == sorted(flat[wanted].tolist())


SHAPES = st.sampled_from([(1, 1), (1, 64), (3, 5), (7, 48), (16, 64), (64, 16), (96, 7), (33, 128)])


@given(SHAPES, KINDS, st.booleans(), st.data())
@example((33, 128), Kind(2, -0.5, 1), True, None)
def test_token_choice_is_stable(
    shape: tuple[int, int], kind: Kind, by_column: bool, data: st.DataObject | None
) -> None:
    affinities = matrix(*shape, kind)
    k = data.draw(st.integers(1, shape[1])) if data else 3
    found = token_choice(laid_out(affinities, by_column), k)
    assert_chosen(affinities, found, naive_token(affinities, k))


@given(SHAPES, KINDS, st.booleans(), st.data())
def test_mutual_choice_is_stable(
    shape: tuple[int, int], kind: Kind, by_column: bool, data: st.DataObject
) -> None:
    affinities = matrix(*shape, kind)
    budget = data.draw(st.integers(0, affinities.numel()))
    guess = data.draw(st.none() | st.floats(-1.5, 1.5))
    tensor = None if guess is None else torch.tensor(guess)
    found = mutual_choice(laid_out(affinities, by_column), budget, tensor)
    assert found.tolist() == naive_mutual(affinities, budget)


@given(SHAPES, KINDS, st.booleans(), st.data())
def test_feature_choice_is_stable(
    shape: tuple[int, int], kind: Kind, by_column: bool, data: st.DataObject
) -> None:
    affinities = matrix(*shape, kind)
    one = st.integers(0, shape[0]) | st.integers(0, min(3, shape[0]))
    budgets = data.draw(st.lists(one, min_size=shape[1], max_size=shape[1]))
    found = feature_choice(laid_out(affinities, by_column), torch.tensor(budgets))
    assert_chosen(affinities, found, naive_feature(affinities, budgets))


CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "token": lambda a: token_choice(a, 5),
    "mutual": lambda a: mutual_choice(a, 5 * len(a), torch.tensor(0.1)),
    "feature": lambda a: feature_choice(a, torch.arange(a.shape[1]) % 9),
}


@pytest.mark.parametrize("choice", CHOICES)
@given(kind=KINDS)
def test_a_choice_does_not_depend_on_the_layout(choice: str, kind: Kind) -> None:
    affinities = matrix(64, 192, kind)
    straight, other = (CHOICES[choice](laid_out(affinities, by)) for by in (False, True))
    assert torch.equal(affinities.flatten()[straight].relu(), affinities.flatten()[other].relu())
    positive = affinities.flatten() > 0
    assert torch.equal(straight[positive[straight]], other[positive[other]])
