"""Reads a sweep's finished runs as points of L0 against quality."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sae_sweeps.config.history import upgrade
from sae_sweeps.measures import known
from sae_sweeps.pareto import curves
from sae_sweeps.record.run import RESULT_VERSION, source
from sae_sweeps.tracking.interface import scalars


@dataclass(frozen=True)
class RunPoint:
    """One finished run."""

    run: str
    label: str
    """The method, as `token_choice + aux_k`."""
    curve: str
    """The label and what else, besides `k` and seeds, tells it from the sweep's other runs."""
    setting: str
    """Equal for runs that differ in seeds only."""
    k: float
    d_sae: int
    seed: int
    tokens: int
    metrics: dict[str, float | int]
    """`l0`, `fvu`, ... on held-out tokens, `batch_*` with batch allocation, `train_*`."""
    result: dict[str, Any]
    """The whole `result.json`."""

    def get(self, measure: str) -> float | None:
        """Look a measure up; None when it was not measured or is not a number."""
        value = self.metrics.get(measure)
        return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Setting:
    """The runs of a sweep that differ in seeds only."""

    points: list[RunPoint]

    @property
    def curve(self) -> str:
        """The curve all its runs are on."""
        return self.points[0].curve

    @property
    def source(self) -> str:
        """What was reconstructed: figures of settings that differ in it cannot be compared."""
        return source(self.points[0].result.get("config", {}))

    @property
    def k(self) -> float:
        """The dial's value, common to its runs."""
        return self.points[0].k

    def values(self, measure: str) -> list[float]:
        """Give the measure of every run that has it."""
        found = [point.get(measure) for point in self.points]
        return [value for value in found if value is not None]

    def mean(self, measure: str) -> float | None:
        """Average over seeds; None when no run has the measure."""
        values = self.values(measure)
        return fmean(values) if values else None

    def spread(self, measure: str) -> float | None:
        """Give the standard deviation over seeds; None with fewer than two."""
        values = self.values(measure)
        return stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Results:
    """What a sweep has to show."""

    sweep: str
    points: list[RunPoint]
    failures: dict[str, str]
    """By run, why there is no result."""
    unfinished: list[str]


def read(folder: Path) -> Results:
    """Read `runs/*/result.json` of a sweep's folder, and `failed.json` where there is none."""
    results: dict[str, dict[str, Any]] = {}
    failures: dict[str, str] = {}
    unfinished: list[str] = []
    for run in sorted(path for path in (folder / "runs").glob("[!.]*") if path.is_dir()):
        try:
            if (run / "result.json").exists():
                results[run.name] = _whole(json.loads((run / "result.json").read_bytes()))
            elif (run / "failed.json").exists():
                failures[run.name] = json.loads((run / "failed.json").read_bytes())["error"]
            else:
                unfinished.append(run.name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            failures[run.name] = f"unreadable: {type(error).__name__}: {error}"
    return Results(folder.resolve().name, _points(results), failures, unfinished)


def settings(points: Sequence[RunPoint]) -> list[Setting]:
    """Gather the points that differ in seeds only, ordered by curve and `k`."""
    gathered: dict[tuple[str, str], list[RunPoint]] = {}
    for point in points:
        gathered.setdefault((point.curve, point.setting), []).append(point)
    found = [Setting(points) for points in gathered.values()]
    return sorted(found, key=lambda setting: (curves.order(setting.curve), setting.k))


def by_curve(points: Sequence[RunPoint]) -> dict[str, list[Setting]]:
    """Gather settings into curves."""
    gathered: dict[str, list[Setting]] = {}
    for setting in settings(points):
        gathered.setdefault(setting.curve, []).append(setting)
    return gathered


def together(several: Sequence[Results]) -> list[Results]:
    """The same results, their curves named by what parts the runs of all of them."""
    points = [point for results in several for point in results.points]
    names = iter(curves.names([(point.label, point.result["config"]) for point in points]))
    return [
        replace(results, points=[replace(point, curve=next(names)) for point in results.points])
        for results in several
    ]


def _whole(result: Mapping[str, Any]) -> dict[str, Any]:
    if result["version"] not in (1, RESULT_VERSION):
        raise ValueError(f"version {result['version']} of result.json is not known here")
    for key in ("label", "config", "k", "d_sae", "seed", "tokens", "metrics"):
        result[key]
    known([result])  # raises where it describes a measure wrongly
    return {**result, "config": upgrade(result["config"])}


def _points(results: Mapping[str, dict[str, Any]]) -> list[RunPoint]:
    found = list(results.values())
    names = curves.names([(result["label"], result["config"]) for result in found])
    return [
        RunPoint(
            run=run,
            label=result["label"],
            curve=curve,
            setting=curves.setting(result["config"]),
            k=float(result["k"]),
            d_sae=result["d_sae"],
            seed=result["seed"],
            tokens=result["tokens"],
            metrics=scalars(result),
            result=result,
        )
        for (run, result), curve in zip(results.items(), names, strict=True)
    ]
