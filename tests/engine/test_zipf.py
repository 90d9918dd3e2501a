"""Zipf's law: densities and budgets by rank, against fractions and golden values."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.engine.zipf import UNIT, zipf_budgets, zipf_densities

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("d_sae", "batch", "k", "exponent", "shift", "expected"),
    [
        (8, 4, 2.0, 1.0, 0.0, [3, 1, 1, 1, 1, 1, 0, 0]),
        (8, 4, 2.0, 0.0, 0.0, [1] * 8),
        (16, 32, 4.0, 1.0, 0.0, [32, 20, 13, 10, 8, 7, 6, 5, 4, 4, 4, 3, 3, 3, 3, 3]),
        (16, 32, 4.0, 1.0, 2.7, [19, 15, 13, 11, 9, 8, 7, 7, 6, 6, 5, 5, 5, 4, 4, 4]),
        (10, 8, 1.0, 1.5, 0.0, [4, 2, 1, 1, 0, 0, 0, 0, 0, 0]),
    ],
)
def test_golden_budgets(
    d_sae: int, batch: int, k: float, exponent: float, shift: float, expected: list[int]
) -> None:
    budgets = zipf_budgets(d_sae, batch, k, exponent, shift)
    assert budgets.largest_remainder.tolist() == expected


def water_filled(
    d_sae: int, batch: int, total: int, exponent: int, shift: Fraction
) -> list[Fraction]:
    weights = [Fraction(1)] * d_sae
    for _ in range(exponent):
        weights = [weight / (rank + shift) for rank, weight in enumerate(weights, start=1)]
    budgets = [Fraction(batch)] * d_sae
    free = list(range(d_sae))
    while free:
        left = total - batch * (d_sae - len(free))
        level = left / sum((weights[i] for i in free), Fraction(0))
        if all(level * weights[i] <= batch for i in free):
            for i in free:
                budgets[i] = level * weights[i]
            break
        free = [i for i in free if level * weights[i] <= batch]
    return budgets


@given(
    d_sae=st.integers(1, 40),
    batch=st.integers(1, 40),
    share=st.floats(0, 1),
    exponent=st.integers(0, 3),
    shift=st.fractions(0, 20, max_denominator=10),
)
def test_budgets_are_water_filling_rounded_by_largest_remainder(
    d_sae: int, batch: int, share: float, exponent: int, shift: Fraction
) -> None:
    k = share * d_sae  # seldom a whole number
    total = round(k * batch)
    budgets = zipf_budgets(d_sae, batch, k, float(exponent), float(shift))
    got = budgets.largest_remainder.tolist()
    exact = water_filled(d_sae, batch, total, exponent, shift)
    assert budgets.exact.tolist() == pytest.approx([float(budget) for budget in exact])
    assert sum(got) == total
    assert all(0 <= tokens <= batch for tokens in got)
    assert got == sorted(got, reverse=True)
    over = [float(g - e) for g, e in zip(got, exact, strict=True)]
    assert max(map(abs, over)) < 1 + 1e-9
    up = [1 - o for o in over if o > 1e-9]  # the remainders that were rounded up
    down = [-o for o in over if o < -1e-9]
    assert min(up, default=1) >= max(down, default=0) - 1e-9


def test_budgets_stay_within_the_batch_when_the_cap_cascades() -> None:
    # ranks 1 and 2 exceed the cap at once; what they leave lifts 3 and 4 over it, and then 5
    budgets = zipf_budgets(8, 4, 7.0, 1.0, 0.0)
    assert budgets.largest_remainder.tolist() == [4, 4, 4, 4, 4, 3, 3, 2]


@pytest.mark.parametrize("k", [3.0, 5.0])
def test_a_budget_of_all_there_is_or_more_caps_every_rank(k: float) -> None:
    budgets = zipf_budgets(3, 7, k, 1.0, 0.0)
    assert budgets.largest_remainder.tolist() == budgets.systematic(0.9).tolist() == [7, 7, 7]


@pytest.mark.parametrize(
    ("d_sae", "batch", "k"), [(4, 3, 2.0), (5, 1, 5.0), (1, 7, 0.3), (3, 2, 0.1)]
)
@pytest.mark.parametrize("exponent", [0.0, 40.0, 1e4])
def test_budgets_of_an_extreme_law_are_numbers(
    d_sae: int, batch: int, k: float, exponent: float
) -> None:
    budgets = zipf_budgets(d_sae, batch, k, exponent, 0.0)
    for whole in (budgets.largest_remainder, budgets.systematic(0.5)):
        assert whole.sum() == round(k * batch)
        assert ((whole >= 0) & (whole <= batch)).all()


# ---------------------------------------------------------------- systematic rounding

LAWS = {
    "d_sae": st.integers(1, 60),
    "batch": st.integers(1, 60),
    "share": st.floats(0, 1),
    "exponent": st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0]),
    "shift": st.sampled_from([0.0, 2.7, 32.0]),
}
ALMOST_1 = 1 - 2**-53


@given(**LAWS, u=st.floats(0, ALMOST_1) | st.sampled_from([0.0, 0.5, ALMOST_1]))
def test_systematic_rounding_keeps_the_sum_and_rounds_each_up_or_down(
    d_sae: int, batch: int, share: float, exponent: float, shift: float, u: float
) -> None:
    k = share * d_sae
    budgets = zipf_budgets(d_sae, batch, k, exponent, shift)
    got = budgets.systematic(u)
    assert got.sum() == round(k * batch)
    # what is whole but for a rounding error may have been floored: up or down of that
    assert (got >= (budgets.exact - 1e-9).floor()).all()
    assert (got <= (budgets.exact + 1e-9).ceil()).all()
    assert ((got >= 0) & (got <= batch)).all()


@pytest.mark.slow
@given(**LAWS, first=st.floats(0, 1e-3))
def test_systematic_rounding_is_unbiased(
    d_sae: int, batch: int, share: float, exponent: float, shift: float, first: float
) -> None:
    """Of evenly spaced u a rank is rounded up by as many as its fraction, to within one."""
    budgets = zipf_budgets(d_sae, batch, share * d_sae, exponent, shift)
    mean = sum(budgets.systematic(first + i / 1000).double() for i in range(999)) / 999
    torch.testing.assert_close(mean, budgets.exact, atol=2.5e-3, rtol=0)


def test_systematic_rounding_of_golden_budgets() -> None:
    # METHODS: exact budgets 8 / (H r), H = sum of 1 / r to 8, of which rank 1 gets 2.94
    budgets = zipf_budgets(8, 4, 2.0, 1.0, 0.0)
    weights = [Fraction(1, rank) for rank in range(1, 9)]
    edges = [8 * sum(weights[:rank], Fraction(0)) / sum(weights) for rank in range(9)]
    for step in range(50):
        u = Fraction(step, 50) + Fraction(1, 10**4)
        floors = [(edge + u) // 1 for edge in edges]
        expected = [above - below for below, above in pairwise(floors)]
        assert budgets.systematic(float(u)).tolist() == expected


def test_systematic_rounding_of_many_small_budgets_loses_none() -> None:
    budgets = zipf_budgets(100_000, 1000, 7.0, 1.0, 0.0)
    for u in (0.0, 0.3, ALMOST_1):
        got = budgets.systematic(u)
        assert got.sum() == 7000
        assert ((got - budgets.exact).abs() < 1 + 1 / UNIT).all()


# ---------------------------------------------------------------- densities


@given(
    d_sae=st.integers(1, 50),
    share=st.floats(0, 1),
    exponent=st.floats(0, 3),
    shift=st.floats(0, 50),
)
def test_densities(d_sae: int, share: float, exponent: float, shift: float) -> None:
    l0 = share * d_sae
    weights = [(rank + shift) ** -exponent for rank in range(1, d_sae + 1)]
    expected = [min(1.0, l0 * weight / sum(weights)) for weight in weights]
    assert zipf_densities(d_sae, l0, exponent, shift).tolist() == pytest.approx(expected, rel=1e-5)
    measured = zipf_densities(d_sae, torch.tensor(l0, dtype=torch.float64), exponent, shift)
    assert measured.tolist() == pytest.approx(expected, rel=1e-5)
    assert measured.dtype == torch.float32
