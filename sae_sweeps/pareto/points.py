"""Reads a sweep's finished runs as points of L0 against quality."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from sae_sweeps.config.options import RunConfig
from sae_sweeps.pareto import curves
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.record.identity import source
from sae_sweeps.record.result import Figures, Result


@dataclass(frozen=True)
class RunPoint:
    """One finished run."""

    run: str
    curve: str
    """The label and what else, besides `k` and seeds, tells it from the sweep's other runs."""
    setting: str
    """Equal for runs that differ in seeds only."""
    metrics: Figures
    """`l0`, `fvu`, ... on held-out tokens, `batch_*` with batch allocation, `train_*`."""
    result: Result

    @property
    def label(self) -> str:
        """The method, as `token_choice + aux_k`."""
        return self.result.label

    @property
    def config(self) -> RunConfig:
        """What it was trained with."""
        return self.result.config

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
        return source(self.points[0].config)

    @property
    def k(self) -> float:
        """The dial's value, common to its runs."""
        return self.points[0].config.k

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
    """Read the results of a sweep's runs, and the failures of those that have none."""
    results: dict[str, Result] = {}
    failures: dict[str, str] = {}
    unfinished: list[str] = []
    for run in SweepFolder(folder).runs:
        name = run.path.name
        try:
            if run.finished.exists():
                results[name] = run.result()
            elif failure := run.failure():
                failures[name] = failure.error
            else:
                unfinished.append(name)
        except ValueError as error:
            failures[name] = f"unreadable: {error}"
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
    names = iter(curves.names([(point.label, point.config) for point in points]))
    return [
        replace(results, points=[replace(point, curve=next(names)) for point in results.points])
        for results in several
    ]


def _points(results: Mapping[str, Result]) -> list[RunPoint]:
    names = curves.names([(result.label, result.config) for result in results.values()])
    return [
        RunPoint(run, curve, curves.setting(result.config), result.scalars, result)
        for (run, result), curve in zip(results.items(), names, strict=True)
    ]
