"""How the quality benchmark comes to equal L0 and to learning rates."""

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.benchmarks.quality_cases import KS
from tests.benchmarks.quality_search import (
    FACTOR,
    FLAT,
    MOST_RATES,
    NEAR,
    Point,
    best_rate,
    curve_slope,
    matched,
    reached,
    there,
)

L0S = st.floats(1.0, 500.0)
STEPS = 24
"""learning rates on either side of the first one: more than a sweep can reach"""


@given(st.lists(st.tuples(L0S, st.floats(0.01, 1.0)), min_size=2, max_size=8), st.floats(0, 1))
def test_fvu_at_equal_l0_lies_on_the_line_between_neighbours(
    rows: list[tuple[float, float]], share: float
) -> None:
    """As NumPy interpolates between sorted points, in logarithms."""
    rows = [rows[i] for i in np.unique([round(l0, 2) for l0, _ in rows], return_index=True)[1]]
    l0s, fvus = np.array(rows).T
    k = float(
        np.clip(
            math.exp(math.log(l0s[0]) * (1 - share) + math.log(l0s[-1]) * share), l0s[0], l0s[-1]
        )
    )
    expected = math.exp(np.interp(math.log(k), np.log(l0s), np.log(fvus)))
    points = [Point(1.0, *row) for row in reversed(rows)]
    assert matched(points, k) == pytest.approx(expected, rel=1e-6)


@given(st.lists(L0S, min_size=1, max_size=4), L0S, st.floats(-2, -0.1))
def test_a_power_law_is_followed_from_one_side_too(
    l0s: list[float], k: float, slope: float
) -> None:
    """With the slope given, or with that of the points."""
    points = [Point(1.0, l0, 3 * l0**slope) for l0 in l0s]
    assert matched(points, k, slope) == pytest.approx(3 * k**slope)
    if max(l0s) > min(l0s) * 1.01 and not min(l0s) <= k <= max(l0s):
        assert matched(sorted(points, key=lambda p: p.l0)[:: len(l0s) - 1], k) == pytest.approx(
            3 * k**slope
        )


def test_the_slope_of_a_curve_is_that_of_its_points_beside_k() -> None:
    """At the middle the mean of both sides, at an end that of the one; none from one point."""
    curve = {8: Point(8, 8, 0.4), 32: Point(32, 32, 0.2), 64: Point(64, 64, 0.05)}
    assert curve_slope(curve, 8) == pytest.approx(-0.5)
    assert curve_slope(curve, 64) == pytest.approx(-2)
    assert curve_slope(curve, 32) == pytest.approx(-1.25)
    assert curve_slope({8: curve[8]}, 8) is None


@given(st.lists(st.floats(0.01, 1.0) | st.just(math.inf), min_size=2 * STEPS, max_size=2 * STEPS))
def test_a_sweep_never_ends_at_an_edge_unless_it_is_flat(fvus: list[float]) -> None:
    """Whatever the curve: both neighbours of the best were tried, or the last step hardly paid."""
    tried: dict[int, float] = {}

    def fvu(rate: float) -> float:
        step = round(math.log(rate, FACTOR))
        tried[step] = fvus[step + STEPS]
        return tried[step]

    chosen = round(math.log(best_rate(fvu, 1.0), FACTOR))
    lowest = min(tried.values())
    assert len(tried) <= MOST_RATES
    assert tried[chosen] == lowest or tried[chosen] * (1 - FLAT) < lowest
    if len(tried) < MOST_RATES:
        assert chosen - 1 in tried
        assert chosen + 1 in tried


@given(st.integers(-3, 3), st.integers(0, 5))
def test_a_sweep_finds_the_bottom_of_a_valley(start: int, bottom: int) -> None:
    """From either side of it, without trying more than lies between and around."""
    tried: list[float] = []

    def fvu(rate: float) -> float:
        tried.append(rate)
        return 1 + abs(math.log(rate, FACTOR) - bottom)

    assert best_rate(fvu, FACTOR**start) == FACTOR**bottom
    assert len(tried) == len(set(tried)) == max(3, abs(start - bottom) + 3)


@given(
    st.floats(0.3, 2.5),
    st.floats(-0.15, 0.15),
    st.floats(0.03, 30),
    st.sampled_from(KS),
    st.sampled_from([-1.0, 1.0]),
)
@example(2.5, 0.0, 1 / 32, 64, -1.0)
def test_trainings_come_to_lie_around_k(
    power: float, bend: float, off: float, k: int, sign: float
) -> None:
    """Whatever the penalty's law, as long as it is one, and however far off the first guess.

    Where the penalty is too weak all 2,000 latents are active, where too strong none.
    """

    def train(dial: float) -> Point:
        x = math.log(dial)
        l0 = k * math.exp(sign * power * (x + bend * math.tanh(x)))
        return Point.of(dial, {"l0": min(l0, 2000.0) if l0 > 0.01 else 0.0, "fvu": 1 / l0})

    points = reached(train, k, off, sign, whole=False)
    assert there(points, k)
    assert matched(points, k) == pytest.approx(1 / k, rel=0.02)


def test_points_far_from_k_do_not_do() -> None:
    """On one side, or too far on either; a very close one does, alone."""
    assert not there([Point(1, 33, 1), Point(2, 34, 1)], 32)
    assert not there([Point(1, 32 * (1 - NEAR) - 1, 1), Point(2, 33, 1)], 32)
    assert there([Point(1, 31, 1), Point(2, 36, 1)], 32)
    assert there([Point(1, 32.5, 1)], 32)


def test_a_search_among_whole_numbers_ends() -> None:
    """Where no dial is close, with the two around."""
    points = reached(lambda dial: Point(dial, 1.07 * dial, 1 / dial), 8, 8, 1.0, whole=True)
    assert [point.dial for point in points] == [8, 7]


def test_a_training_that_fails_ends_a_search() -> None:
    """It is not tried again and again."""
    assert reached({}.get, 8, 8, 1.0, whole=False) == []
