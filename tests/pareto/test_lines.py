"""What a curve reaches between its settings and just beyond them, by hand."""

import math

import pytest

from sae_sweeps.pareto.lines import Place, lines_of, read, usual_slope


def line(*places: tuple[float, float]) -> list[Place]:
    return [Place("a", l0, fvu, 1) for l0, fvu in places]


def fvu_at(line: list[Place], l0: float, slope: float = 0.0) -> float | None:
    place = read(line, l0, slope)
    return None if place is None else place.fvu


def test_a_line_is_linear_in_log_l0_and_goes_on_by_five_percent() -> None:
    falling = line((4, 0.4), (16, 0.2))
    assert [fvu_at(falling, l0) for l0 in (4, 16)] == [0.4, 0.2]
    assert fvu_at(falling, 8) == pytest.approx(0.3)
    step = 0.2 / math.log(4)  # per unit of log L0
    assert fvu_at(falling, 16.8) == pytest.approx(0.2 - step * math.log(1.05))
    assert fvu_at(falling, 3.8) == pytest.approx(0.4 - step * math.log(0.95))
    assert fvu_at(falling, 16.81) is None and fvu_at(falling, 3.79) is None
    assert fvu_at([], 4) is None


@pytest.mark.parametrize(
    ("ends", "l0", "expected"),
    [
        (((16, 0.3), (32, 0.01)), 33.0, 0.005),  # would be below zero
        (((16.0, 0.12), (16.001, 0.11)), 15.5, 0.18),  # would be 5
        (((16.0, 0.11), (16.001, 0.12)), 15.5, 0.055),
        (((16.0, 0.11), (16.001, 0.12)), 16.5, 0.18),
    ],
)
def test_an_extension_changes_by_half_at_most(
    ends: tuple[tuple[float, float], tuple[float, float]], l0: float, expected: float
) -> None:
    assert fvu_at(line(*ends), l0) == pytest.approx(expected)


def test_a_line_of_one_place_has_the_median_slope_of_what_is_near_it() -> None:
    lines = [
        line((4, 0.4), (8, 0.2)),
        line((4, 0.8), (8, 0.7)),
        line((4, 0.5), (8, 0.1), (16, 0.05)),  # at 6 its first segment counts
        line((6, 0.3)),
    ]
    slope = usual_slope(lines, 6)
    assert slope == pytest.approx(-0.2 / math.log(2))
    assert usual_slope(lines, 12) == pytest.approx(-0.1 / math.log(2))  # its second
    assert fvu_at(lines[-1], 6.2, slope) == pytest.approx(0.3 + slope * math.log(6.2 / 6))
    assert fvu_at(lines[-1], 6.31, slope) is None
    assert usual_slope(lines[3:], 6) == 0


def test_a_reading_has_the_fewest_seeds_that_it_was_read_from() -> None:
    places = [Place("a", 4, 0.4, 3), Place("a", 8, 0.3, 1), Place("a", 16, 0.2, 2)]
    seeds = {l0: found.seeds for l0 in (4, 5, 8, 9, 16, 16.5) if (found := read(places, l0, 0.0))}
    assert seeds == {4: 3, 5: 1, 8: 1, 9: 1, 16: 2, 16.5: 1}


def test_of_one_l0_the_best_counts_and_a_log_axis_has_no_zero() -> None:
    found = lines_of({"a": line((8, 0.2), (0, 1.0), (4, 0.3), (8, 0.1))})
    assert [(place.l0, place.fvu) for place in found["a"]] == [(4, 0.3), (8, 0.1)]
