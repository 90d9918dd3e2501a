"""The lines of `pareto.csv`."""

from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.pareto.frontier import frontier
from sae_sweeps.pareto.points import RunPoint, Setting, by_curve, settings

NOT_TRAINING = [group.name for group in GROUPS if not group.trains]


def rows(points: list[RunPoint]) -> list[dict[str, Any]]:
    """Give one row per run, with every scalar of its result."""
    found = settings(points)
    best = _runs_on_frontier(found)
    best_of_curve = {run for curve in by_curve(points).values() for run in _runs_on_frontier(curve)}
    return [
        {
            "run": point.run,
            "label": point.label,
            "curve": point.curve,
            **{
                group: name
                for group, name in point.result.choices.items()
                if group not in NOT_TRAINING
            },
            "k": point.config.k,
            "d_sae": point.config.d_sae,
            "seed": point.config.seed,
            "tokens": point.result.tokens,
            "frontier": int(point.run in best),
            "curve_frontier": int(point.run in best_of_curve),
            **point.metrics,
            **{f"evaluation_{k}": v for k, v in point.result.evaluation.items()},
            **{f"cost_{k}": v for k, v in point.result.cost.items()},
        }
        for setting in found
        for point in setting.points
    ]


def _runs_on_frontier(found: list[Setting]) -> set[str]:
    """Name the runs whose setting, averaged over seeds, is on the frontier of L0 and FVU."""
    return {point.run for setting in frontier(found) for point in setting.points}
