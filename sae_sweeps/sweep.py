"""A sweep's plan and its manifest: which runs are there, which are finished, who shares a pack."""

import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sae_sweeps import files
from sae_sweeps.config import identity, run_name, stream_identity
from sae_sweeps.run import METRICS_VERSION, ConfigError, Run

MANIFEST_VERSION = 1
RESULT_VERSION = 1
ONE_PER_SWEEP = ("tracking", "evaluation", "device", "threads", "checkpoint_minutes")
"""Sections that cannot change the weights, hence no axes: their points would be one run."""

PACKAGES = (
    *("sae-sweeps", "torch", "numpy", "safetensors", "transformer-lens", "transformers"),
    *("datasets", "wandb", "hydra-core", "omegaconf", "submitit"),
)
DIFF_CHARACTERS = 20_000


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
    """The runs to train, by stream."""
    remeasured: list[list[Run]]
    """Finished runs that were measured with other options or other metrics, by stream."""

    @property
    def resumed(self) -> int:
        """How many of the runs to train have a checkpoint to go on from."""
        runs = [run for pack in self.packs for run in pack]
        return sum(any((run.folder / "checkpoint").glob("step-*")) for run in runs)

    @property
    def repeated(self) -> int:
        """How many points are another point's run again."""
        return len(self.runs) - len({run.name for run in self.runs})


def plan(name: str, folder: Path, points: list[Point]) -> Plan:
    """Give each point its run, leave out finished runs, group the others by stream."""
    _refuse_differences(points)
    known: dict[str, Run] = {}
    finished: dict[str, dict[str, Any]] = {}
    packs: dict[str, list[Run]] = {}
    remeasured: dict[str, list[Run]] = {}
    runs: list[Run] = []
    for point in points:
        key = identity(point.config)
        if key not in known:
            run = known[key] = _run(name, folder, point, key)
            result = finished_result(run.folder, key)
            stream = stream_identity(point.config)
            if result is None:
                packs.setdefault(stream, []).append(run)
            elif _measured_otherwise(result, run):
                remeasured.setdefault(stream, []).append(run)
            else:
                finished[run.name] = result
        runs.append(known[key])
    groups = list(packs.values()), list(remeasured.values())
    return Plan(name, folder, points, runs, finished, *groups)


def _measured_otherwise(result: Mapping[str, Any], run: Run) -> bool:
    """Say whether a finished run's figures are not those that it would get today."""
    version = result.get("evaluation", {}).get("metrics_version")
    other_options = result["config"]["evaluation"] != run.config["evaluation"]
    return other_options or version != METRICS_VERSION


def _run(sweep: str, folder: Path, point: Point, key: str) -> Run:
    """Name a run's folder, or find the one that holds this identity under another slug."""
    name = run_name(point.config, point.choices)
    held = [path for path in (folder / "runs").glob(f"*-{key[:8]}") if path.is_dir()]
    if held:
        name = sorted(held)[0].name
    home = folder / "runs" / name
    return Run(name, sweep, home, point.config, point.choices, point.overrides)


def _refuse_differences(points: Iterable[Point]) -> None:
    for key in ONE_PER_SWEEP:
        seen = [point.config[key] for point in points]
        if any(value != seen[0] for value in seen):
            raise ConfigError(f"{key} differs between points; a sweep has one {key}.")


def finished_result(folder: Path, key: str) -> dict[str, Any] | None:
    """Read a run's result, if it is whole and of this identity."""
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        whole = result["version"] == RESULT_VERSION and "metrics" in result
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


def write_manifest(plan: Plan) -> None:
    """Write `sweep.json`; points and launches of earlier commands stay in it."""
    path = plan.folder / "sweep.json"
    before = _earlier(path)
    rows = [_row(point, run) for point, run in zip(plan.points, plan.runs, strict=True)]
    current = {row["run"] for row in rows}
    launch = {
        "command": shlex.join(sys.orig_argv),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "packs": [[run.name for run in pack] for pack in plan.packs],
        "git": git_state(),
        "packages": versions(),
    }
    kept = [row for row in before.get("points", []) if row["run"] not in current]
    manifest = {
        "version": MANIFEST_VERSION,
        "name": plan.name,
        **launch,
        "points": kept + rows,
        "earlier": [*before.get("earlier", []), *_launch_of(before, launch.keys())],
    }
    files.write_json(path, manifest)


def _row(point: Point, run: Run) -> dict[str, Any]:
    return {
        "run": run.name,
        "overrides": point.overrides,
        "choices": point.choices,
        "config": point.config,
    }


def _earlier(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ConfigError(f"{path} is not JSON; move it away, or give another name.") from None
    if manifest.get("version") != MANIFEST_VERSION:
        text = f"{path} has version {manifest.get('version')!r}, expected {MANIFEST_VERSION}."
        raise ConfigError(f"{text} Give another name.")
    return manifest


def _launch_of(manifest: Mapping[str, Any], keys: Iterable[str]) -> list[dict[str, Any]]:
    return [{key: manifest[key] for key in keys if key in manifest}] if manifest else []


def git_state() -> dict[str, str] | None:
    """Tell the commit and the uncommitted changes of the code that runs, if it is a checkout."""
    home = Path(__file__).resolve().parent.parent
    if not (home / ".git").exists():
        return None
    commit = _git(home, "rev-parse", "--quiet", "--verify", "HEAD")
    diff = _git(home, "diff", "HEAD", "--", "sae_sweeps", "conf", "hydra_plugins")
    return {"commit": commit.strip(), "diff": diff[:DIFF_CHARACTERS]}


def _git(home: Path, *words: str) -> str:
    try:
        command = ["git", "-C", str(home), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def versions() -> dict[str, str]:
    """Tell which packages are installed; reading that imports none of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
