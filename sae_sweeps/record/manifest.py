"""A sweep's manifest, `sweep.json`: its points, and of every launch its packs and their jobs."""

import importlib.metadata
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.config.history import upgrade
from sae_sweeps.config.options import RunConfig
from sae_sweeps.errors import ConfigError, one_line, visible
from sae_sweeps.record.folder import MANIFEST_VERSION, SweepFolder
from sae_sweeps.record.plan import Plan, Point
from sae_sweeps.system import files

PACKAGES = (
    *("sae-sweeps", "torch", "numpy", "safetensors", "transformer-lens", "transformers"),
    *("datasets", "wandb", "hydra-core", "omegaconf", "submitit"),
)
DIFF_CHARACTERS = 20_000
JOB = re.compile(r"\d+(_\d+)?")

LAUNCH = (
    *("command", "cwd", "time", "host", "pid", "git", "packages", "search_path"),
    *("launcher", "packs"),
)
"""What the manifest holds of each launch: of the last one at its top, of others in `earlier`."""


@dataclass(frozen=True)
class Pack:
    """Runs that one process trains, in lockstep."""

    name: str
    """`<launch>-<i>`, which its files in `packs/` are called."""
    runs: list[str]
    job: str | None
    """Its SLURM job, `12_0`; None for a pack that a local process trains."""


@dataclass(frozen=True)
class Launch:
    """One command that planned packs."""

    command: str
    time: str
    """When it was planned, ISO 8601 with the zone."""
    host: str
    pid: int
    launcher: dict[str, Any]
    """`_target_` and the options; its values are plain JSON."""
    packs: list[Pack]
    search_path: list[str]
    """Folders where its process found modules, a user's own among them."""
    cwd: str
    """The folder it was typed in, which relative paths of its options begin at."""
    git: dict[str, str]
    """`commit` and `diff` of the code it ran; empty where it lay in no repository."""
    packages: dict[str, str]
    """Versions of Python and of the packages that rule results."""


@dataclass(frozen=True)
class Manifest:
    """What `sweep.json` says."""

    name: str
    points: list[Point]
    runs: list[str]
    """The name of every point's run; points of equal identity share one."""
    launches: list[Launch]
    """Oldest first."""

    def planned(self, run: str) -> tuple[Launch, Pack] | None:
        """Give the last launch that planned a run, and its pack there."""
        for launch in reversed(self.launches):
            for pack in launch.packs:
                if run in pack.runs:
                    return launch, pack
        return None

    def pack_of(self, run: str) -> Pack | None:
        """Give the pack of the last launch that planned a run."""
        planned = self.planned(run)
        return planned[1] if planned else None


def read(folder: Path) -> Manifest:
    """Read a sweep's manifest.

    Raises:
        ConfigError: for a folder that holds none, or one of another version.
    """
    path = SweepFolder(folder).manifest
    found = _load(path)
    if found is None:
        raise ConfigError(f"{folder} is not a sweep's folder: it has no {path.name}.")
    try:
        rows = found["points"]
        points = [_point(row) for row in rows]
        launches = [_launch(launch) for launch in (*found["earlier"], found)]
        runs = [files.plain_name(row["run"]) for row in rows]
        return Manifest(visible(str(found["name"])), points, runs, launches)
    except KeyError as error:
        raise ConfigError(f"{path} is not a manifest: it lacks {error}.") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{path} is not a manifest: {error}.") from None


def _point(row: Mapping[str, Any]) -> Point:
    overrides, choices = [*map(str, row["overrides"])], row["choices"]
    names = {visible(str(group)): visible(str(option)) for group, option in choices.items()}
    return Point(overrides, RunConfig.of(upgrade(row["config"])), names)


def _launch(found: Mapping[str, Any]) -> Launch:
    packs = [_pack(pack) for pack in found["packs"]]
    return Launch(
        command=visible(str(found["command"])),
        time=visible(str(found["time"])),
        host=visible(str(found["host"])),
        pid=int(found["pid"]),
        launcher=dict(found["launcher"]),
        packs=packs,
        search_path=[*map(str, found.get("search_path", []))],
        cwd=str(found.get("cwd", ".")),
        git=found.get("git") or {},
        packages=found.get("packages", {}),
    )


def _pack(found: Mapping[str, Any]) -> Pack:
    job = found["job"]
    if job is not None and not JOB.fullmatch(job):
        raise ValueError(f"{one_line(repr(job))} is not the number of a job of SLURM's.")
    runs = [files.plain_name(run) for run in found["runs"]]
    return Pack(files.plain_name(found["name"]), runs, job)


def typed(argv: Sequence[str]) -> str:
    """Word a process's arguments as one would type them, without folders of programs."""
    names = [Path(word).name for word in argv]
    start = names.index("sae-sweeps") if "sae-sweeps" in names[:2] else 0
    return shlex.join([names[start], *argv[start + 1 :]])


def next_launch(folder: Path) -> int:
    """Number the launch to come, from 1; raises ConfigError for a manifest of another version."""
    found = _load(SweepFolder(folder).manifest)
    return 1 if found is None else len(found["earlier"]) + 2


def write(plan: Plan, packs: Sequence[Pack], launcher: Mapping[str, Any]) -> None:
    """Write `sweep.json`; points and launches of earlier commands stay in it.

    Again for the same plan, as when jobs have got their ids, it replaces what it wrote of it.

    Raises:
        ConfigError: for a manifest of another version, which stays as it is.
    """
    path = plan.files.manifest
    before = _load(path) or {}
    rows = [_row(point, run.name) for point, run in zip(plan.points, plan.runs, strict=True)]
    current = {row["run"] for row in rows}
    kept = [row for row in before.get("points", []) if row["run"] not in current]
    earlier = before.get("earlier", [])
    mine = {"time": plan.time, "host": socket.gethostname(), "pid": os.getpid()}
    if mine.items() <= before.items():
        launch = _of_launch(before)
    else:
        earlier = [*earlier, *([_of_launch(before)] if before else [])]
        launch = {"command": typed(sys.orig_argv), "cwd": str(Path.cwd()), **mine}
        launch |= {"git": git_state(), "packages": versions(), "search_path": search_path()}
    launch |= {"launcher": dict(launcher), "packs": [asdict(pack) for pack in packs]}
    manifest = {"version": MANIFEST_VERSION, "name": plan.name, **launch}
    files.write_json(path, manifest | {"points": kept + rows, "earlier": earlier})


def _row(point: Point, run: str) -> dict[str, Any]:
    return {
        "run": run,
        "overrides": point.overrides,
        "choices": point.choices,
        "config": point.config.tree,
    }


def _of_launch(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: manifest[key] for key in LAUNCH if key in manifest}


def _load(path: Path) -> dict[str, Any] | None:
    """Read a manifest of this version; None if there is none."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest.get("version")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, AttributeError):
        raise ConfigError(f"{path} is not JSON; move it away, or give another name.") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    if version not in (2, MANIFEST_VERSION):
        text = f"{path} has version {version!r}, expected {MANIFEST_VERSION}."
        raise ConfigError(f"{text} Give another name.")
    return manifest


def search_path() -> list[str]:
    """Give the folders where a process started elsewhere finds the modules that this one does."""
    return [str(Path(entry).resolve()) for entry in sys.path if Path(entry or ".").is_dir()]


def git_state() -> dict[str, str] | None:
    """Tell the commit and the uncommitted changes of the code that runs, if it is a checkout."""
    home = Path(__file__).resolve().parents[2]
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
