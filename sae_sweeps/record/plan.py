"""A sweep's plan: which runs are there, which are finished, who shares a pack."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.config.history import BIRTHS, acting, moved, walk
from sae_sweeps.config.options import ROOT, RunConfig
from sae_sweeps.config.signature import TARGET, signature
from sae_sweeps.errors import ConfigError
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.record.identity import identity, pass_identity
from sae_sweeps.record.naming import run_name
from sae_sweeps.record.result import METRICS_VERSION, Result
from sae_sweeps.record.run import Run

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
    config: RunConfig
    choices: dict[str, str]


@dataclass(frozen=True)
class Plan:
    """What a launch has to do, decided before anything is written."""

    name: str
    folder: Path
    points: list[Point]
    runs: list[Run]
    """The run of every point; points of equal identity share one."""
    finished: dict[str, Result]
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
    def files(self) -> SweepFolder:
        """What lies in the folder."""
        return SweepFolder(self.folder)

    @property
    def resumed(self) -> int:
        """How many of the runs to train have a checkpoint to go on from."""
        return sum(self.left(run) < run.config.total_tokens for pack in self.packs for run in pack)

    def left(self, run: Run) -> int:
        """Tokens that a run is yet to be trained on."""
        saved = 0 if run.name in self._anew else run.files.saved_tokens
        return max(0, run.config.total_tokens - saved)

    @cached_property
    def _anew(self) -> frozenset[str]:
        """The names of runs that start anew."""
        return frozenset(run.name for run in self.aside)

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
    force, anew = points[0].config.force, points[0].config.measure_anew
    points = [_settled(point) for point in points]
    known: dict[str, Run] = {}
    finished: dict[str, Result] = {}
    packs: dict[str, list[Run]] = {}
    remeasured: dict[str, list[Run]] = {}
    for point in points:
        key = identity(point.config)
        if key not in known:
            run = known[key] = _run(name, folder, point, key, anew)
            result = None if force else run.files.result_of(point.config)
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
    changed = _changed([run for pack in packs.values() for run in pack], before)
    return Plan(name, folder, points, runs, finished, *groups, busy, aside, changed, launch)


def _changed(runs: Iterable[Run], before: Iterable[Point]) -> dict[str, tuple[Any, Any]]:
    """Find what a default or an algorithm that has changed makes other than it was.

    Runs are compared with points that were typed alike.
    """
    there = {_words(point.overrides): point.config for point in before}
    found: dict[str, tuple[Any, Any]] = {}
    for run in runs:
        was = dict(walk(acting(there.get(_words(run.overrides), run.config).tree)))
        now = dict(walk(acting(run.config.tree)))
        for path in (path for path in [*was, *now] if was.get(path) != now.get(path)):
            found.setdefault(path, (was.get(path), now.get(path)))
    return found


def _words(overrides: Iterable[str]) -> frozenset[str]:
    """What was typed, or stood in the sweep's file, of what can change weights."""
    words = [moved(word).lstrip("+") for word in overrides]
    return frozenset(w for w in words if w.partition("=")[0].split(".")[0] not in NOT_ACTING)


def _settled(point: Point) -> Point:
    """Leave out wishes for this launch."""
    words = [w for w in point.overrides if w.lstrip("+").partition("=")[0] not in LAUNCH_ONLY]
    config = replace(point.config, force=False, measure_anew=False)
    return replace(point, overrides=words, config=config)


def _refuse_busy(run: Run, job: str, force: bool) -> None:
    if force:
        text = f"force is true, but {run.name} is under way in job {job}"
        raise ConfigError(f"{text}: cancel it first, `sae-sweeps cancel` does.")


def move_aside(plan: Plan) -> list[tuple[Path, Path]]:
    """Put the folders of runs that start anew into `aside/<time>/`; gives old and new places."""
    home = plan.files.aside(plan.time)
    moved = [(run.folder, home / run.name) for run in plan.aside]
    for old, new in moved:
        home.mkdir(parents=True, exist_ok=True)
        old.rename(new)
    return moved


def up_to_date(result: Result, run: Run) -> bool:
    """Say whether a finished run's figures are those that are asked for, as today has them.

    One that has more of them is; so is one that lacks figures that a later version brought.
    """
    there, asked = result.config, run.config
    enough = there.nodes["measure"], {TARGET: BIRTHS["measure"]}
    today = result.evaluation.get("metrics_version") == METRICS_VERSION
    same = there.evaluation == asked.evaluation and asked.nodes["measure"] in enough
    return same and today and not asked.measure_anew


def _run(sweep: str, folder: Path, point: Point, key: str, anew: bool) -> Run:
    """Name a run's folder, or find the one that holds this identity under another slug."""
    name = run_name(point.config, point.choices)
    sweeps = SweepFolder(folder)
    held = [path for path in sweeps.home.glob(f"*-{key[:8]}") if path.is_dir()]
    if held:
        name = sorted(held)[0].name
    config = replace(point.config, measure_anew=anew)
    return Run(name, sweep, sweeps.run(name).path, config, point.choices, point.overrides)


def _refuse_differences(points: Iterable[Point]) -> None:
    trees = [point.config.tree for point in points]
    for key in ONE_PER_SWEEP:
        seen = [tree[key] for tree in trees]
        if any(value != seen[0] for value in seen):
            raise ConfigError(f"{key} differs between points; a sweep has one {key}.")
