"""The lines of `pareto.csv`."""

from dataclasses import asdict
from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.pareto.frontier import strict_frontier
from sae_sweeps.pareto.points import RunPoint, Setting, by_curve, settings
from sae_sweeps.pareto.standing import Verdict, standings

NOT_TRAINING = [group.name for group in GROUPS if not group.trains]


def rows(points: list[RunPoint]) -> list[dict[str, Any]]:
    """Give one row per run, with every scalar of its result."""
    found = settings(points)
    best = _runs_not_dominated(found)
    best_of_curve = {
        run for curve in by_curve(points).values() for run in _runs_not_dominated(curve)
    }
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
            **_frontier(verdict),
            "strict_frontier": int(point.run in best),
            "curve_frontier": int(point.run in best_of_curve),
            **point.metrics,
            **{f"evaluation_{k}": v for k, v in point.result.evaluation.items()},
            **{f"cost_{k}": v for k, v in point.result.cost.items()},
        }
        for setting, verdict in zip(found, standings(found), strict=True)
        for point in setting.points
    ]


def _frontier(verdict: Verdict | None) -> dict[str, Any]:
    """How a run's setting stands by L0 and FVU; None for what there is nothing to say of."""
    told = asdict(verdict) if verdict else {}
    return {
        "frontier": int(verdict is not None and verdict.is_best),
        "standing": told.get("standing"),
        **{f"frontier_{key}": told.get(key) for key in ("gap", "margin", "seeds", "rival")},
    }


def _runs_not_dominated(found: list[Setting]) -> set[str]:
    return {point.run for setting in strict_frontier(found) for point in setting.points}
