"""How `quality` finds learning rates and equal L0: pure rules over trainings that others make.

FVU is taken to go with L0 as a power law between neighbouring points: log FVU is interpolated
linearly in log L0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

FACTOR = 2.0
"""between neighbouring learning rates"""
FLAT = 0.003
"""an FVU that is lower by less than this share is as good"""
NEAR = 0.15
"""how far L0 may be off k where points lie on both sides of it"""
CLOSE = 0.02
"""how far where a slope known from elsewhere carries a single point to k"""
MOST_POINTS = 8
MOST_RATES = 12
USUAL_SLOPE = -0.7
"""d log FVU / d log L0 where only one point is known; measured on the embedded set"""


LEAST_L0 = 1e-3
"""what counts as the L0 of an SAE without active latents: there is a way back from it"""


@dataclass(frozen=True)
class Point:
    """A training that came to an end."""

    dial: float
    l0: float
    fvu: float

    @classmethod
    def of(cls, dial: float, row: Mapping[str, float]) -> "Point":
        """Read a row."""
        return cls(dial, max(row["l0"], LEAST_L0), row["fvu"])


def best_rate(fvu: Callable[[float], float], start: float) -> float:
    """The learning rate of the lowest FVU on a grid that grows until that one is not at its edge.

    At an edge the sweep ends only where the last step out was worth less than `FLAT`; a training
    that failed has an FVU of infinity.
    """
    found = {step: fvu(start * FACTOR**step) for step in (-1, 0, 1)}
    best = min(found, key=lambda step: found[step])
    while len(found) < MOST_RATES:
        low, high = min(found), max(found)
        if low < best < high:
            break
        inner = best + 1 if best == low else best - 1
        if found[best] > found[inner] * (1 - FLAT):
            best = inner
            break
        further = low - 1 if best == low else high + 1
        found[further] = fvu(start * FACTOR**further)
        best = min(found, key=lambda step: found[step])
    return start * FACTOR**best


def matched(points: Sequence[Point], k: float, slope: float | None = None) -> float:
    """FVU at L0 `k`: between the nearest points on either side, else along their slope.

    Args:
        slope: d log FVU / d log L0, for points on one side only; None: that of the nearest two,
            and if there is but one, the usual.
    """
    low, high = _around(points, k)
    if low and high:
        if low.l0 == high.l0:
            return low.fvu
        return low.fvu * (k / low.l0) ** _slope(low, high)
    best, *others = sorted(points, key=lambda point: abs(math.log(point.l0 / k)))
    if slope is None:
        apart = [other for other in others if other.l0 != best.l0]
        slope = _slope(best, apart[0]) if apart else USUAL_SLOPE
    return best.fvu * (k / best.l0) ** slope


def nearest(points: Sequence[Point], k: float) -> Point:
    """The point whose L0 is nearest to `k`, the last one of several."""
    return min(reversed(points), key=lambda point: abs(math.log(point.l0 / k)))


def _slope(one: Point, other: Point) -> float:
    return math.log(other.fvu / one.fvu) / math.log(other.l0 / one.l0)


def _around(points: Sequence[Point], k: float) -> tuple[Point | None, Point | None]:
    """The nearest points not above and not below `k`."""
    low = max((p for p in points if p.l0 <= k), key=lambda p: p.l0, default=None)
    high = min((p for p in points if p.l0 >= k), key=lambda p: p.l0, default=None)
    return low, high


def there(points: Sequence[Point], k: float) -> bool:
    """Whether `matched` may be asked for: points close on both sides, or one very close."""
    if any(abs(point.l0 / k - 1) <= CLOSE for point in points):
        return True
    low, high = _around(points, k)
    if low is None or high is None:
        return False
    return low.l0 >= k * (1 - NEAR) and high.l0 <= k * (1 + NEAR)


def reached(
    train: Callable[[float], Point | None], k: float, first: float, power: float, whole: bool
) -> list[Point]:
    """Trainings around L0 `k`: at dials chosen by secants in their logarithms.

    Args:
        train: the point of a dial; None where the training failed, which ends the search.
        first: the first dial.
        power: L0 ~ dial^power, about, before two points tell.
        whole: whether dials are whole numbers.
    """
    points: list[Point] = []
    dial = first
    while len(points) < MOST_POINTS:
        point = train(dial)
        if point is None:
            break
        points.append(point)
        dial = next_dial(points, k, power, whole)
        if there(points, k) or any(dial == tried.dial for tried in points):
            break
    return points


def next_dial(
    points: Sequence[Point], k: float, power: float, whole: bool = False, exactly: bool = False
) -> float:
    """Where L0 should be `k`; from one side of it, slightly beyond it unless `exactly`."""
    best = nearest(points, k)
    low, high = _around(points, k)
    beyond = 1.0
    if low and high:
        power = _power(low, high, power)
    else:
        if others := [point for point in points if point is not best]:
            power = _power(best, nearest(others, k), power)
        if not exactly:
            beyond = 1 + NEAR / 4 if best.l0 < k else 1 - NEAR / 4
    step = math.log(k * beyond / best.l0) / power
    dial = best.dial * math.exp(max(-2.0, min(2.0, step)))
    return max(1.0, float(round(dial))) if whole else float(f"{dial:.3g}")


def _power(one: Point, other: Point, usual: float) -> float:
    """d log L0 / d log dial of two points, unless it makes no sense."""
    if one.dial == other.dial or one.l0 == other.l0:
        return usual
    power = math.log(one.l0 / other.l0) / math.log(one.dial / other.dial)
    return power if 0.2 < power / usual < 5 else usual


def curve_slope(curve: Mapping[int, Point], k: float) -> float | None:
    """Slope of FVU over L0 at `k`, from the curve's points at other k beside it; None without."""
    rows = sorted(curve.items())
    slopes = [
        _slope(left, right)
        for (low, left), (high, right) in pairwise(rows)
        if k in (low, high) and left.l0 != right.l0
    ]
    return sum(slopes) / len(slopes) if slopes else None
