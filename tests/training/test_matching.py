"""Matching of directions against every permutation; recovery of a known dictionary."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.training.matching import matched_cosines, recovery


def drawn(seed: int, rows: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    lengths = np.linalg.norm(one.astype(float)) * np.linalg.norm(other.astype(float))
    return float(one.astype(float) @ other.astype(float) / lengths) if lengths else 0.0


SIZES = st.tuples(st.integers(0, 9999), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))


@given(SIZES)
def test_no_other_assignment_has_a_larger_sum(sizes: tuple[int, int, int, int]) -> None:
    seed, n, m, width = sizes
    one, other = drawn(seed, n, width), drawn(seed + 1, m, width)
    found = matched_cosines(one, other)
    assert len(found) == min(n, m)
    few, many = (one, other) if n <= m else (other, one)
    sums = [
        sum(cosine(row, many[place]) for row, place in zip(few, places, strict=True))
        for places in permutations(range(len(many)), len(few))
    ]
    assert found.sum() == pytest.approx(max(sums), abs=1e-5)


@given(SIZES, st.floats(0.01, 100))
def test_order_and_lengths_are_no_matter(sizes: tuple[int, int, int, int], length: float) -> None:
    seed, n, m, width = sizes
    one, other = drawn(seed, n, width), drawn(seed + 1, m, width)
    found = matched_cosines(one, other)
    shuffled = other[np.random.default_rng(seed).permutation(m)] * np.float32(length)
    # Sums, since of equally good assignments any may come.
    assert matched_cosines(one, shuffled).sum() == pytest.approx(found.sum(), abs=1e-5)
    assert matched_cosines(other, one).sum() == pytest.approx(found.sum(), abs=1e-5)
    np.testing.assert_allclose(matched_cosines(one, one), 1, atol=1e-6)


def test_more_rows_than_a_block() -> None:
    one = drawn(0, 1500, 16)
    order = np.random.default_rng(1).permutation(1500)
    np.testing.assert_allclose(matched_cosines(one, one[order]), 1, atol=1e-6)


def test_signs_count_and_rows_of_zeros_match_nothing() -> None:
    one = np.eye(3, dtype=np.float32)
    assert matched_cosines(one, -one).sum() == 0  # a derangement, all at right angles
    assert matched_cosines(one[:1], -one[:1]) == [-1]
    assert matched_cosines(one, np.diag([1.0, 0.0, 1.0]).astype(np.float32)).tolist() == [1, 0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    one, other = drawn(0, 3, 2), drawn(1, 3, 2)
    other[1, 1] = bad
    for pair in ((one, other), (other, one)):
        with pytest.raises(ValueError, match="finite"):
            matched_cosines(*pair)


def test_each_latent_recovers_one_feature_only() -> None:
    """Greedy matching would give the first latent to the second feature as well."""
    truth = np.eye(4, dtype=np.float32)[:3]
    decoder = np.array([[1, 0.45, 0, 0], [0.3, 0, 0, 1], [0, 0, 2, 0.1]], dtype=np.float32)
    found = recovery(truth, decoder)
    to_first, to_second = 1 / np.hypot(1, 0.45), 0.45 / np.hypot(1, 0.45)
    leftover = 0.3 / np.hypot(0.3, 1)
    third = 2 / np.hypot(2, 0.1)
    best = max(to_first + 0.0, to_second + leftover)
    assert found["true_matched_cos"] == pytest.approx((best + third) / 3, rel=1e-5)
    assert found["true_max_cos"] == pytest.approx((to_first + to_second + third) / 3, rel=1e-5)
    assert found["true_recovered_frac"] == pytest.approx(2 / 3)  # 0.91 and 0.999


def test_a_found_dictionary_and_half_of_it() -> None:
    truth = drawn(3, 40, 8)
    latents = np.concatenate([drawn(4, 20, 8), 7 * truth[::-1]])
    assert recovery(truth, latents) == pytest.approx(
        {"true_matched_cos": 1, "true_max_cos": 1, "true_recovered_frac": 1}
    )
    axes = np.eye(8, dtype=np.float32)
    assert recovery(axes, axes[:4]) == {
        "true_matched_cos": 0.5,
        "true_max_cos": 0.5,
        "true_recovered_frac": 0.5,
    }


def test_a_cosine_just_above_nine_tenths_is_a_recovery() -> None:
    axis = np.array([[1.0, 0.0]])
    for angle, recovered in ((0.44, 1), (0.46, 0)):  # cosines 0.905 and 0.896
        latent = np.array([[np.cos(angle), np.sin(angle)]])
        assert recovery(axis, latent)["true_recovered_frac"] == recovered
