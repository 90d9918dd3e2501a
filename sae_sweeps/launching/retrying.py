"""Launches again what of a sweep failed or was lost, as it was launched before."""

import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from sae_sweeps.config.history import walk
from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.rules import obey
from sae_sweeps.config.stored import Stored
from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.launching.launcher import PlanLauncher
from sae_sweeps.launching.summary import say
from sae_sweeps.record import manifest, status
from sae_sweeps.record.manifest import Launch
from sae_sweeps.record.plan import ONE_PER_SWEEP, Point


def retry(folder: Path, trust: bool = False) -> int:
    """Launch the failed and lost runs of a sweep; returns the exit code.

    Configs and launcher are those of the manifest: no YAML is read. Of options that cannot change
    a run's weights the last launch's count, since a launch has one of each.

    Args:
        trust: take the manifest's word for where modules are, for the folder that it was launched
            in, and for commands of the launcher's: all of that runs code of its author's choice.

    Raises:
        ConfigError: for what a manifest may not name without that.
    """
    found, now = manifest.read(folder), status.read(folder)
    names = [run.name for run in now.runs if run.state in ("failed", "lost")]
    if not names:
        say(f"{found.name}: no run has failed or was lost")
        return 0
    last = found.points[-1].config.tree
    latest = {key: last[key] for key in ONE_PER_SWEEP}
    pairs = zip(found.runs, found.points, strict=True)
    failed = [point for name, point in pairs if name in names]
    points = [replace(p, config=RunConfig.of(p.config.tree | latest)) for p in failed]
    launch = found.launches[-1]
    folder = folder.absolute()
    if trust:
        for earlier in reversed(found.launches):  # as they were found then
            sys.path += [place for place in earlier.search_path if place not in sys.path]
    with chdir(launch.cwd if trust and Path(launch.cwd).is_dir() else "."):
        launcher = _checked(found.launches, points, folder, trust)
        _, outcomes = launcher.launch_points(found.name, folder, points)
    return 2 if any(isinstance(outcome, Exception) for outcome in outcomes.values()) else 0


def _checked(
    launches: Sequence[Launch], points: Sequence[Point], folder: Path, trust: bool
) -> PlanLauncher:
    """Refuse what the command line would, and build the launcher."""
    places = tuple(dict.fromkeys(p for launch in launches for p in launch.search_path))
    stored = Stored(folder, places, trust)
    for point in points:
        tree = stored.check(point.config)
        _refuse_relative(point.config, launches[-1].cwd)
        obey(tree)
    return stored.launcher(launches[-1].launcher)


def _refuse_relative(config: RunConfig, home: str) -> None:
    """Refuse paths that begin elsewhere than where they began at the launch."""
    if not Path(home).is_dir() or Path(home).resolve() == Path.cwd():
        return
    for path, value in walk(config.nodes):
        if not isinstance(value, str) or not value or Path(value).expanduser().is_absolute():
            continue
        if Path(home, value).exists() or Path(value).exists():
            text = one_line(f"{path} is {value!r}, and the sweep was launched in {home}")
            raise ConfigError(f"{text}: call retry there, or with --trust.")
