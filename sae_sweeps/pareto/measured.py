"""Which measures a sweep has to show, in the order of the table of measures."""

from collections.abc import Sequence

from sae_sweeps.measures import Column, Measure, Panel, known
from sae_sweeps.pareto.points import RunPoint

PRICE = "dead_frac"
"""The measure that tells at what price a setting is on the frontier: dead latents shrink an SAE."""


def panels(points: Sequence[RunPoint]) -> list[tuple[Measure, Panel]]:
    """Give what is drawn over L0 and was measured for one run at least."""
    return [
        (measure, measure.panel)
        for measure in known(_foreign(points))
        if measure.panel is not None and _is_measured(points, measure)
    ]


def columns(points: Sequence[RunPoint]) -> list[tuple[Measure, Column]]:
    """Give what tables have a column for and was measured for one run at least.

    `PRICE` is the last, for a setting's mark stands beside it.
    """
    found = [
        (measure, measure.column)
        for measure in known(_foreign(points))
        if measure.column is not None and _is_measured(points, measure)
    ]
    return sorted(found, key=lambda pair: pair[0].name == PRICE)


def _foreign(points: Sequence[RunPoint]) -> list[Measure]:
    return [measure for point in points for measure in point.result.measures]


def _is_measured(points: Sequence[RunPoint], measure: Measure) -> bool:
    return any(point.get(measure.name) is not None for point in points)
