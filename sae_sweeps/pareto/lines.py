"""What a curve reaches at an L0 that none of its settings has: its line of FVU over log L0."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

REACH = 0.05
"""Share of an end's L0 by which a line goes on beyond it."""
MOST_CHANGE = 0.5
"""Share of its end's FVU by which such an extension changes at most: a steep one would lead below
zero."""


@dataclass(frozen=True)
class Place:
    """An FVU at an L0: of a setting, or read from a curve's line."""

    curve: str
    l0: float
    fvu: float
    seeds: int
    """Runs that the means are of; the fewest of the settings that a line was read from."""

    def dominates(self, other: "Place") -> bool:
        """Say whether it is no worse in both, and better in one."""
        no_worse = self.l0 <= other.l0 and self.fvu <= other.fvu
        return no_worse and (self.l0 < other.l0 or self.fvu < other.fvu)


Line = Sequence[Place]
"""A curve's places by rising L0, the best one of each L0."""


def lines_of(curves: Mapping[str, Sequence[Place]]) -> dict[str, Line]:
    """Give each curve's line; on an axis of log L0 there is no place for an L0 of 0."""
    found: dict[str, Line] = {}
    for curve, places in curves.items():
        best: dict[float, Place] = {}
        for place in sorted(places, key=lambda place: (place.l0, place.fvu)):
            best.setdefault(place.l0, place)
        found[curve] = [place for l0, place in best.items() if l0 > 0]
    return found


def read(line: Line, l0: float, slope: float) -> Place | None:
    """Read a line at an L0: linear in log L0, its end segments extended by `REACH`.

    Args:
        line: of any number of places.
        l0: where to read.
        slope: FVU per unit of log L0, for a line of one place.

    Returns:
        What the curve has there; None where the line does not reach.
    """
    if not line or not (1 - REACH) * line[0].l0 <= l0 <= (1 + REACH) * line[-1].l0:
        return None
    # A line of one place is a segment from it to itself.
    left, right = _segment(line, l0) if len(line) > 1 else (line[0], line[0])
    anchor = right if l0 >= right.l0 else left
    if anchor.l0 == l0:
        return anchor
    fvu = anchor.fvu + (_slope(left, right) if left is not right else slope) * _log(anchor.l0, l0)
    # Between the ends these limits are none.
    low, high = sorted((left.fvu, right.fvu))
    fvu = min(max(fvu, (1 - MOST_CHANGE) * low), (1 + MOST_CHANGE) * high)
    return Place(left.curve, l0, fvu, min(left.seeds, right.seeds))


def usual_slope(lines: Sequence[Line], l0: float) -> float:
    """Give the slope for a line of one place at this L0, FVU per unit of log L0.

    It is the median over all lines of two places or more, each taken at its segment that is nearest
    in log L0, of two the left one. Without such lines it is 0: then L0s in reach count as equal.
    """
    slopes = [_slope(*_segment(line, l0)) for line in lines if len(line) > 1]
    return median(slopes) if slopes else 0.0


def _segment(line: Line, l0: float) -> tuple[Place, Place]:
    """Find the segment that holds an L0, or is nearest to it."""
    return next(
        ((left, right) for left, right in pairwise(line) if l0 <= right.l0), (line[-2], line[-1])
    )


def _slope(left: Place, right: Place) -> float:
    return (right.fvu - left.fvu) / _log(left.l0, right.l0)


def _log(of: float, to: float) -> float:
    """The log of a ratio; of neighbouring numbers it is small, but never 0."""
    return math.log1p((to - of) / of)
