"""How settings stand: the main job's by hand, a naive reference, and what must never change."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.pareto.frontier import non_dominated
from sae_sweeps.pareto.lines import Place
from sae_sweeps.pareto.standing import (
    Verdict,
    judged,
    margin_of,
    pooled_spread,
    standings,
)
from tests.support.reported import Curves, settings_of

MAIN_JOB: Curves = {
    "feature_choice": [
        (3.925567626953125, [0.2596502916491491]),
        (7.938079833984375, [0.17771859213226845]),
        (16.027130126953125, [0.1189388435879555]),
        (32.301025390625, [0.07488825555437485]),
    ],
    "gated": [
        (3.994781494140625, [0.29238082374567675]),
        (7.833984375, [0.20964744136128471]),
        (15.580780029296875, [0.14232307088807425]),
        (31.27923583984375, [0.09128069503329501]),
    ],
    "jumprelu": [
        (4.1654052734375, [0.2503266562198134]),
        (8.32574462890625, [0.16963541569945773]),
        (16.40631103515625, [0.11005496342067529]),
        (32.56219482421875, [0.06187507894932453]),
    ],
    "mutual_choice": [
        (4.023468017578125, [0.26208282905189373]),
        (8.07366943359375, [0.1734815230859048]),
        (16.17559814453125, [0.11131914911826304]),
        (32.50811767578125, [0.06764466855398253]),
    ],
    "relu": [
        (4.1485595703125, [0.6627614278845423]),
        (8.07305908203125, [0.5067700037604431]),
        (15.802490234375, [0.3372919242284981]),
        (31.315216064453125, [0.1862244746336831]),
    ],
    "token_choice": [
        (4.0, [0.24316175713564867]),
        (8.0, [0.17281030158957084]),
        (16.0, [0.11503144763094267]),
        (32.0, [0.07436721287693743]),
    ],
}
"""L0 and FVU of a main job with one seed, for `k` = 4, 8, 16 and 32."""


def test_of_a_main_job_two_are_on_the_frontier_and_five_tie() -> None:
    found = settings_of(MAIN_JOB)
    places = [(curve, k) for curve in MAIN_JOB for k in (4, 8, 16, 32)]
    verdicts = dict(zip(places, standings(found), strict=True))
    assert {v.margin for v in verdicts.values() if v} == {0.01}
    assert {v.seeds for v in verdicts.values() if v} == {1}
    stands = {place: v.standing for place, v in verdicts.items() if v}
    assert {place for place, standing in stands.items() if standing == "on"} == {
        ("token_choice", 4),
        ("jumprelu", 32),
    }
    assert {place for place, standing in stands.items() if standing == "tie"} == {
        ("token_choice", 8),
        ("mutual_choice", 8),
        ("mutual_choice", 16),
        ("jumprelu", 8),
        ("jumprelu", 16),
    }
    assert [*stands.values()].count("dominated") == 17
    token, jumprelu = verdicts["token_choice", 4], verdicts["jumprelu", 32]
    assert token and token.gap == pytest.approx(-0.047, abs=5e-4)
    assert jumprelu and jumprelu.gap == pytest.approx(-0.084, abs=5e-4)


def line(*places: tuple[float, float], seeds: int = 1, curve: str = "a") -> list[Place]:
    return [Place(curve, l0, fvu, seeds) for l0, fvu in places]


def standing(own: tuple[float, float], *rivals: list[Place], of: str = "own") -> Verdict:
    places = [Place(of, *own, 1), *(place for rival in rivals for place in rival)]
    return judged(places, None)[0]


def test_a_setting_is_compared_with_the_best_rival_at_its_l0() -> None:
    worse, better = line((4, 0.8), (16, 0.4), curve="w"), line((4, 0.4), (16, 0.2), curve="b")
    for fvu, expected in ((0.295, "on"), (0.298, "tie"), (0.302, "tie"), (0.304, "dominated")):
        verdict = standing((8, fvu), worse, better)
        assert (verdict.standing, verdict.rival) == (expected, "b")
        assert verdict.gap == pytest.approx(fvu / 0.3 - 1)
    assert standing((17, 0.9), line((4, 0.4), (16, 1.0))).standing == "dominated"
    assert standing((17, 0.3), line((4, 0.4), (16, 0.35))) == Verdict("unopposed")


def test_a_rival_that_diverged_at_more_l0_keeps_what_it_reached_at_less() -> None:
    """Else a setting would be on the frontier that has more L0 and more FVU than the rival."""
    verdict = standing((16, 0.3), line((8, 0.2), (16, 0.5), (32, 0.08)))
    assert verdict.standing == "dominated" and verdict.gap == pytest.approx(0.5)


def test_the_own_curve_counts_by_strict_dominance() -> None:
    own = line((4, 0.3), (8, 0.301), (16, 0.1), curve="own")
    first, second, third = judged(own, None)
    assert (first, third) == (Verdict("unopposed"), Verdict("unopposed"))
    assert (second.standing, second.rival) == ("dominated", "own")
    rival = line((4, 0.9), (16, 0.8))
    assert [v.standing for v in judged([*own, *rival], None)][:3] == ["on", "dominated", "on"]


def test_curves_of_one_place_each_compare_l0s_within_five_percent_as_equal() -> None:
    singles = [Place("a", 4, 0.2, 1), Place("b", 4.1, 0.21, 1), Place("c", 8, 0.2001, 1)]
    verdicts = judged(singles, None)
    assert [v.standing for v in verdicts] == ["on", "dominated", "dominated"]
    assert verdicts[0].gap == pytest.approx(0.2 / 0.21 - 1)
    assert verdicts[1].gap == pytest.approx(0.21 / 0.2 - 1)


def test_an_fvu_of_zero_has_no_finite_gap_to_it() -> None:
    perfect, other = line((4, 0.0), curve="p"), line((4, 0.1), curve="o")
    assert [v.gap for v in judged([*perfect, *other], None)] == [-1.0, math.inf]
    assert [v.standing for v in judged([*perfect, *line((4, 0.0))], 0.5)] == ["tie", "tie"]


def test_the_spread_is_pooled_by_degrees_of_freedom() -> None:
    # relative variances: 0.02 / 0.04 = 0.5 of one degree, 0.01 / 0.09 = 1/9 of two
    groups = [[0.1, 0.3], [0.2, 0.3, 0.4], [7.0]]
    assert pooled_spread(groups) == pytest.approx(math.sqrt((0.5 + 2 / 9) / 3))
    assert pooled_spread([[0.1], [0.2]]) is None and pooled_spread([]) is None


def test_the_margin_is_two_standard_errors_and_with_one_seed_a_percent_at_least() -> None:
    assert margin_of(4, 4, 0.01) == pytest.approx(2 * 0.01 * math.sqrt(1 / 2))
    assert margin_of(2, 3, 0.001) == pytest.approx(0.002 * math.sqrt(5 / 6))
    assert margin_of(1, 4, 0.001) == margin_of(4, 1, 0.001) == margin_of(1, 1, None) == 0.01
    assert margin_of(1, 1, 0.1) == pytest.approx(0.2 * math.sqrt(2))


def test_seeds_narrow_the_margin() -> None:
    """Means of 0.199 and 0.2, seeds that part by a fifth of a percent: no tie any more."""
    both: Curves = {"a": [(8, [0.1988, 0.199, 0.1992])], "b": [(8, [0.1998, 0.2, 0.2002])]}
    first, second = standings(settings_of(both))
    assert first and second and (first.standing, second.standing) == ("on", "dominated")
    assert first.seeds == 3 and first.margin == pytest.approx(0.00164, abs=1e-5)
    one: Curves = {"a": [(8, [0.199])], "b": both["b"]}
    assert [v and v.standing for v in standings(settings_of(one))] == ["tie", "tie"]


def test_without_any_spread_equals_are_a_tie_and_all_else_counts() -> None:
    for fvu, stands in ((0.2, ["tie", "tie"]), (0.2002, ["on", "dominated"])):
        found = standings(settings_of({"a": [(8, [0.2, 0.2])], "b": [(8, [fvu, fvu])]}))
        assert [(v.standing, v.margin) for v in found if v] == [(word, 0.0) for word in stands]


def test_only_what_reconstructs_the_same_is_compared() -> None:
    easy, hard = {"a": [(8.0, [0.1])]}, {"b": [(8.0, [0.3])]}
    apart = settings_of(easy, source=0) + settings_of(hard, source=1)
    assert standings(apart) == [Verdict("unopposed")] * 2
    together = standings(settings_of(easy | hard))
    assert [v and v.standing for v in together] == ["on", "dominated"]


def test_without_a_figure_there_is_no_verdict() -> None:
    found = settings_of({"a": [(8.0, [math.nan]), (8.0, [0.2])], "b": [(8.0, [0.1])]})
    missing, other, best = standings(found)
    assert missing is None and other and best
    assert (other.standing, best.standing) == ("dominated", "on")


# --- What must hold for all -----------------------------------------------------------------

l0s = st.one_of(st.sampled_from([0.0, 4.0, 4.15, 8.0, 8.3, 8.5]), st.floats(1, 40))
fvus = st.one_of(st.sampled_from([0.1, 0.2, 0.201]), st.floats(0.01, 1))
spots = st.lists(st.tuples(l0s, fvus, st.integers(1, 4)), min_size=1, max_size=5)
sweeps = st.lists(spots, min_size=1, max_size=5).map(
    lambda curves: [Place(str(i), *spot) for i, spots in enumerate(curves) for spot in spots]
)
spreads = st.one_of(st.none(), st.floats(0, 0.3))


def naive(own: Place, places: list[Place], spread: float | None) -> tuple[str, float | None]:
    """The rule in few lines: standing and gap."""
    values: list[tuple[float, int]] = []
    beaten = False
    for curve in {place.curve for place in places}:
        members = [place for place in places if place.curve == curve]
        value = None if curve == own.curve else value_of(members, own.l0, places)
        less = [p for p in members if p.l0 <= own.l0]
        if value is None:
            less = [p for p in less if p.fvu <= own.fvu and (p.l0, p.fvu) != (own.l0, own.fvu)]
            beaten = beaten or bool(less)
        values += [(p.fvu, p.seeds) for p in less] + ([value] if value else [])
    if not values:
        return "unopposed", None
    fvu, seeds = min(values)
    gap, few = own.fvu / fvu - 1, min(own.seeds, seeds)
    u = 2 * (spread or 0) * (1 / own.seeds + 1 / seeds) ** 0.5
    u = max(u, 0.01) if few == 1 else u
    return ("dominated" if beaten or gap > u else "on" if gap < -u else "tie"), gap


def value_of(members: list[Place], l0: float, places: list[Place]) -> tuple[float, int] | None:
    """A rival's FVU at an L0 with the seeds behind it, by numpy's interpolation."""
    x, y, n = corners(members)
    if not len(x) or not 0.95 * x[0] <= l0 <= 1.05 * x[-1]:
        return None
    if l0 in x:
        return y[list(x).index(l0)], n[list(x).index(l0)]
    if x[0] < l0 < x[-1]:
        right = int(np.searchsorted(x, l0))
        return float(np.interp(np.log(l0), np.log(x), y)), min(n[right - 1], n[right])
    end, beside = (0, 1) if l0 < x[0] else (-1, -2)
    if len(x) == 1:
        lines = [corners([p for p in places if p.curve == c]) for c in {p.curve for p in places}]
        slope = float(np.median([near(*line[:2], x[0]) for line in lines if len(line[0]) > 1] or 0))
        seeds = n[0]
    else:
        slope, seeds = (y[end] - y[beside]) / np.log(x[end] / x[beside]), min(n[end], n[beside])
    return y[end] * float(np.clip(1 + slope * np.log(l0 / x[end]) / y[end], 0.5, 1.5)), seeds


def corners(members: list[Place]) -> tuple[list[float], list[float], list[int]]:
    best: dict[float, Place] = {}
    for p in sorted(members, key=lambda p: (-p.l0, -p.fvu, -members.index(p))):
        best[p.l0] = p
    kept = sorted((p for p in best.values() if p.l0 > 0), key=lambda p: p.l0)
    return [p.l0 for p in kept], [p.fvu for p in kept], [p.seeds for p in kept]


def near(x: list[float], y: list[float], l0: float) -> float:
    """The slope of the segment nearest in log L0."""
    apart = [max(np.log(x[i] / l0), np.log(l0 / x[i + 1]), 0) for i in range(len(x) - 1)]
    i = int(np.argmin(apart))
    return (y[i + 1] - y[i]) / np.log(x[i + 1] / x[i])


@given(sweeps, spreads)
def test_verdicts_equal_a_naive_reference(places: list[Place], spread: float | None) -> None:
    for own, verdict in zip(places, judged(places, spread), strict=True):
        standing, gap = naive(own, places, spread)
        if gap is None or verdict.gap is None or verdict.margin is None:
            assert (verdict.standing, verdict.gap) == (standing, gap)
            continue
        assert verdict.gap == pytest.approx(gap, abs=1e-6)
        if abs(abs(verdict.gap) - verdict.margin) > 1e-6:  # else rounding decides
            assert verdict.standing == standing


@given(sweeps, spreads)
def test_nothing_on_the_frontier_is_strictly_dominated(
    places: list[Place], spread: float | None
) -> None:
    strict = non_dominated([place.l0 for place in places], [place.fvu for place in places])
    verdicts = judged(places, spread)
    assert all(kept for kept, v in zip(strict, verdicts, strict=True) if v.is_best)


@given(sweeps, spreads, st.sampled_from([2.0**-9, 0.5, 1024.0]))
def test_the_unit_of_fvu_is_no_matter(
    places: list[Place], spread: float | None, factor: float
) -> None:
    scaled = [replace(place, fvu=factor * place.fvu) for place in places]
    assert judged(scaled, spread) == judged(places, spread)


@given(sweeps, spreads, st.randoms(use_true_random=False))
def test_the_order_is_no_matter(
    places: list[Place], spread: float | None, chance: random.Random
) -> None:
    places = [replace(place, seeds=2) for place in places]  # of equal places either may be taken
    order = list(range(len(places)))
    chance.shuffle(order)
    shuffled = judged([places[i] for i in order], spread)
    verdicts = judged(places, spread)
    assert shuffled == [verdicts[i] for i in order]


@given(sweeps, spreads, st.floats(1, 40))
def test_a_far_worse_rival_changes_nothing_but_that_there_is_one(
    places: list[Place], spread: float | None, l0: float
) -> None:
    before = judged(places, spread)
    after = judged([*places, Place("worse", l0, 50.0, 1)], spread)
    for then, now in zip(before, after, strict=False):
        assert now == then or (then.standing == "unopposed" and now.rival == "worse")
        assert now.rival != "worse" or now.standing == "on"


@given(spots, spreads)
def test_a_curve_alone_is_unopposed_but_for_itself(
    spots: list[tuple[float, float, int]], spread: float | None
) -> None:
    places = [Place("alone", *spot) for spot in spots]
    strict = non_dominated([place.l0 for place in places], [place.fvu for place in places])
    found = [verdict.standing for verdict in judged(places, spread)]
    assert found == ["unopposed" if kept else "dominated" for kept in strict]
