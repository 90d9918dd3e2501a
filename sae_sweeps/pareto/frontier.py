"""Which settings no other strictly dominates, and curves compared at matched L0."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from statistics import fmean

from sae_sweeps.pareto.points import RunPoint, Setting, settings


def non_dominated(xs: Sequence[float | None], ys: Sequence[float | None]) -> list[bool]:
    """Mark the points that no other beats, both coordinates minimised.

    A point is beaten by one that is no worse in both and better in one; equal points do not beat
    each other. Points with a coordinate that is absent or not a number take no part.
    """
    known = [
        (x, y, index)
        for index, (x, y) in enumerate(zip(xs, ys, strict=True))
        if x is not None and y is not None and not math.isnan(x) and not math.isnan(y)
    ]
    marks = [False] * len(xs)
    lowest: float | None = None
    for _, column in groupby(sorted(known), key=itemgetter(0)):
        members = list(column)
        low = members[0][1]
        if lowest is None or low < lowest:
            lowest = low
            for _, y, index in members:
                marks[index] = y == low
    return marks


def strict_frontier(found: Sequence[Setting]) -> list[Setting]:
    """Keep the settings whose L0 and FVU, means over seeds, no other setting strictly dominates.

    Activations of several hooks, models or data sets have a frontier each. Two settings rarely
    have one L0, so a hair's breadth more of it keeps a worse one here: `standing` compares them.
    """
    kept: set[int] = set()
    for members in by_source(found):
        l0s, fvus = ([found[index].mean(name) for index in members] for name in ("l0", "fvu"))
        marks = non_dominated(l0s, fvus)
        kept |= {index for index, mark in zip(members, marks, strict=True) if mark}
    return [setting for index, setting in enumerate(found) if index in kept]


def by_source(found: Sequence[Setting]) -> list[list[int]]:
    """Group settings, by their index, that reconstruct the same activations."""
    groups: dict[str, list[int]] = {}
    for index, setting in enumerate(found):
        groups.setdefault(setting.source, []).append(index)
    return list(groups.values())


def fvu_at_l0(points: Sequence[RunPoint], l0: float) -> float | None:
    """Interpolate a curve's FVU, linear in log L0 between means over seeds; None outside it."""
    return _at(_vertices(settings(points)), l0)


def matched(
    curves: Mapping[str, Sequence[Setting]],
) -> tuple[list[float], dict[str, list[float | None]]]:
    """Compare FVU at equal L0s, at those that most of the curves reach (and at least two).

    These are the dial's values; those beyond what all curves reach are replaced by the limits.
    """
    vertices = {curve: _vertices(found) for curve, found in curves.items()}
    l0s = _common_l0s(vertices.values(), {s.k for found in curves.values() for s in found})
    reached = {l0: [_at(places, l0) for places in vertices.values()] for l0 in l0s}
    enough = max(2, len(curves) // 2 + 1)
    kept = [l0 for l0 in l0s if sum(value is not None for value in reached[l0]) >= enough]
    return kept, {
        curve: [reached[l0][index] for l0 in kept] for index, curve in enumerate(vertices)
    }


def _common_l0s(curves: Iterable[list[tuple[float, float]]], dial: set[float]) -> list[float]:
    ends = [(places[0][0], places[-1][0]) for places in curves if len(places) > 1]
    if not ends:
        return sorted(dial)
    # Rounded inwards: what a curve reached, it still does.
    low = _to_three_digits(max(first for first, _ in ends), math.ceil)
    high = _to_three_digits(min(last for _, last in ends), math.floor)
    if low >= high:
        return sorted(dial)
    return sorted({low, *(k for k in dial if low < k < high), high})


def _to_three_digits(value: float, way: Callable[[float], int]) -> float:
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return float(f"{way(float(f'{value / unit:.12g}')) * unit:.3g}")


def _vertices(found: Sequence[Setting]) -> list[tuple[float, float]]:
    """Give a curve's (L0, FVU), sorted; settings of one L0 are averaged."""
    at: dict[float, list[float]] = {}
    for setting in found:
        l0, fvu = setting.mean("l0"), setting.mean("fvu")
        if l0 is not None and fvu is not None and l0 > 0:
            at.setdefault(l0, []).append(fvu)
    return sorted((l0, fmean(fvus)) for l0, fvus in at.items())


def _at(vertices: Sequence[tuple[float, float]], l0: float) -> float | None:
    for (left, low), (right, high) in pairwise(vertices):
        if left < l0 < right:
            share = math.log(l0 / left) / math.log(right / left)
            return low + share * (high - low)
    return dict(vertices).get(l0)
