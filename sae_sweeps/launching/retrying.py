"""Launches again what of a sweep failed or was lost, as it was launched before."""

import sys
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import build
from sae_sweeps.launching.launcher import PlanLauncher
from sae_sweeps.launching.summary import say
from sae_sweeps.record import manifest, status
from sae_sweeps.record.plan import ONE_PER_SWEEP


def retry(folder: Path) -> int:
    """Launch the failed and lost runs of a sweep; returns the exit code.

    Configs and launcher are those of the manifest: no YAML is read. Of options that cannot change
    a run's weights the last launch's count, since a launch has one of each.
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
    for launch in reversed(found.launches):  # modules of the user's own are found as they were then
        sys.path += [place for place in launch.search_path if place not in sys.path]
    launcher: PlanLauncher = build(found.launches[-1].launcher)
    home, folder = Path(found.launches[-1].cwd), folder.absolute()
    with chdir(home if home.is_dir() else "."):
        _, outcomes = launcher.launch_points(found.name, folder, points)
    return 2 if any(isinstance(outcome, Exception) for outcome in outcomes.values()) else 0
