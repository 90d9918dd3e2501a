"""A sweep's plan: which runs are there, which are finished, who shares a pack."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.config.history import BIRTHS, acting, moved, upgrade, walk
from sae_sweeps.config.options import ROOT
from sae_sweeps.config.signature import TARGET, signature
from sae_sweeps.errors import ConfigError
from sae_sweeps.record.naming import run_name
from sae_sweeps.record.run import METRICS_VERSION, RESULT_VERSION, Run, identity, pass_identity
from sae_sweeps.system import files

OF_THE_POINT = ("name", "k")
"""What changes no weights and yet may stand in a point."""
ONE_PER_SWEEP = (
    *(name for name, option in signature(ROOT).items() if option.idle and name not in OF_THE_POINT),
    *(group.name for group in GROUPS if not group.trains),
)
"""What cannot change the weights, hence no axes: their points would be one run."""
NOT_ACTING = ("name", *ONE_PER_SWEEP)
LAUNCH_ONLY = ("force", "measure_anew")
"""Wishes for one launch, which are no part of what a later one finds."""


@dataclass(frozen=True)
class Point:
    """One combination of a sweep's axes, composed and checked."""

    overrides: list[str]
    config: dict[str, Any]
    choices: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What a launch has to do, decided before anything is written."""

    name: str
    folder: Path
    points: list[Point]
    runs: list[Run]
    """The run of every point; points of equal identity share one."""
    finished: dict[str, dict[str, Any]]
    """The result of every run that needs nothing more, by the run's name."""
    packs: list[list[Run]]
    """The runs to train, by the pass over a target model that they share."""
    remeasured: list[list[Run]]
    """Finished runs that were measured with other options or other metrics, grouped alike."""
    under_way: dict[str, str] = field(default_factory=dict[str, str])
    """The jobs of runs that another launch submitted, by the run's name: left to them."""
    aside: list[Run] = field(default_factory=list[Run])
    """Runs whose folder makes room, as `force` asks."""
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict[str, tuple[Any, Any]])
    """Options that a run to train has and the run of the same words has not: (there, here)."""
    launch: int = 1
    """Its number among the sweep's launches."""
    time: str = field(default_factory=lambda: datetime.now().astimezone().isoformat())
    """When it was made, ISO 8601: what tells the launches of one process apart."""

    @property
    def resumed(self) -> int:
        """How many of the runs to train have a checkpoint to go on from."""
        return sum(run.saved_tokens > 0 for pack in self.packs for run in pack)

    @property
    def repeated(self) -> int:
        """How many points are another point's run again."""
        return len(self.runs) - len({run.name for run in self.runs})


def make_plan(
    name: str,
    folder: Path,
    points: list[Point],
    under_way: Mapping[str, str] | None = None,
    launch: int = 1,
    before: Iterable[Point] = (),
) -> Plan:
    """Give each point its run, leave out what is finished or under way, group others by pass.

    Args:
        under_way: the jobs of runs that are submitted or in training, by the run's name.
        launch: the launch's number among those of the sweep.
        before: the points of the sweep's earlier launches.
    """
    under_way = under_way or {}
    _refuse_differences(points)
    force, anew = (points[0].config[wish] for wish in LAUNCH_ONLY)
    points = [_settled(point) for point in points]
    known: dict[str, Run] = {}
    finished: dict[str, dict[str, Any]] = {}
    packs: dict[str, list[Run]] = {}
    remeasured: dict[str, list[Run]] = {}
    for point in points:
        key = identity(point.config)
        if key not in known:
            run = known[key] = _run(name, folder, point, key, anew)
            result = None if force else finished_result(run.folder, key)
            shared = pass_identity(point.config)
            if run.name in under_way:
                _refuse_busy(run, under_way[run.name], force)
            elif result is None:
                packs.setdefault(shared, []).append(run)
            elif up_to_date(result, run):
                finished[run.name] = result
            else:
                remeasured.setdefault(shared, []).append(run)
    runs = [known[identity(point.config)] for point in points]
    busy = {run.name: under_way[run.name] for run in known.values() if run.name in under_way}
    aside = [run for run in known.values() if force and run.folder.exists()]
    groups = list(packs.values()), list(remeasured.values())
    todo = {run.name for pack in packs.values() for run in pack}
    new = [point for point, run in zip(points, runs, strict=True) if run.name in todo]
    changed = _changed(new, before)
    return Plan(name, folder, points, runs, finished, *groups, busy, aside, changed, launch)


def _changed(new: Iterable[Point], before: Iterable[Point]) -> dict[str, tuple[Any, Any]]:
    """Find what a default or an algorithm that has changed makes other than it was.

    Points are compared that were typed alike.
    """
    there = {_words(point): point.config for point in before}
    found: dict[str, tuple[Any, Any]] = {}
    for point in new:
        was = dict(walk(acting(there.get(_words(point), point.config))))
        now = dict(walk(acting(point.config)))
        for path in (path for path in [*was, *now] if was.get(path) != now.get(path)):
            found.setdefault(path, (was.get(path), now.get(path)))
    return found


def _words(point: Point) -> frozenset[str]:
    """What was typed, or stood in the sweep's file, of what can change weights."""
    words = [moved(word).lstrip("+") for word in point.overrides]
    return frozenset(w for w in words if w.partition("=")[0].split(".")[0] not in NOT_ACTING)


def _settled(point: Point) -> Point:
    """Leave out wishes for this launch."""
    words = [w for w in point.overrides if w.lstrip("+").partition("=")[0] not in LAUNCH_ONLY]
    return replace(point, overrides=words, config=point.config | dict.fromkeys(LAUNCH_ONLY, False))


def _refuse_busy(run: Run, job: str, force: bool) -> None:
    if force:
        text = f"force is true, but {run.name} is under way in job {job}"
        raise ConfigError(f"{text}: cancel it first, `sae-sweeps cancel` does.")


def move_aside(plan: Plan) -> list[tuple[Path, Path]]:
    """Put the folders of runs that start anew into `aside/<time>/`; gives old and new places."""
    home = plan.folder / "aside" / plan.time.replace(":", "-")
    moved = [(run.folder, home / run.name) for run in plan.aside]
    for old, new in moved:
        home.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    return moved


def up_to_date(result: Mapping[str, Any], run: Run) -> bool:
    """Say whether a finished run's figures are those that are asked for, as today has them.

    One that has more of them is; so is one that lacks figures that a later version brought.
    """
    version = result.get("evaluation", {}).get("metrics_version")
    same_options = result["config"]["evaluation"] == run.config["evaluation"]
    enough = result["config"]["measure"], {TARGET: BIRTHS["measure"]}
    same_figures = version == METRICS_VERSION and run.config["measure"] in enough
    return same_options and same_figures and not run.config["measure_anew"]


def _run(sweep: str, folder: Path, point: Point, key: str, anew: bool) -> Run:
    """Name a run's folder, or find the one that holds this identity under another slug."""
    name = run_name(point.config, point.choices)
    held = [path for path in (folder / "runs").glob(f"*-{key[:8]}") if path.is_dir()]
    if held:
        name = sorted(held)[0].name
    home = folder / "runs" / name
    config = point.config | {"measure_anew": anew}
    return Run(name, sweep, home, config, point.choices, point.overrides)


def _refuse_differences(points: Iterable[Point]) -> None:
    for key in ONE_PER_SWEEP:
        seen = [point.config[key] for point in points]
        if any(value != seen[0] for value in seen):
            raise ConfigError(f"{key} differs between points; a sweep has one {key}.")


def finished_result(folder: Path, key: str) -> dict[str, Any] | None:
    """Read a run's result, if it is whole and of this identity."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        result["config"] = upgrade(result["config"])
        whole = 1 <= result["version"] <= RESULT_VERSION and "metrics" in result
        return result if whole and identity(result["config"]) == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


# --- What is written -----------------------------------------------------------------------


def write_run_files(run: Run) -> None:
    """Put a run's config and overrides into its folder; an earlier failure is forgotten."""
    run.folder.mkdir(parents=True, exist_ok=True)
    files.write_text(run.folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(run.config)))
    overrides = OmegaConf.to_yaml(OmegaConf.create(run.overrides))
    files.write_text(run.folder / "overrides.yaml", overrides)
    (run.folder / "failed.json").unlink(missing_ok=True)
