"""Ends what a sweep has at work: its SLURM jobs, and the command that trains it here."""

import os
import signal
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.errors import ConfigError
from sae_sweeps.record import manifest, status
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.system import cluster, files


@dataclass(frozen=True)
class Cancelled:
    """What was ended of a sweep."""

    name: str
    folder: Path
    jobs: list[str]
    """SLURM jobs that ran or waited."""
    pid: int | None
    """The local command that was told to stop; None if there was none."""
    strangers: list[str]
    """Jobs that the manifest names, of another folder's sweep: left alone."""

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain data."""
        facts = {"name": self.name, "folder": str(self.folder)}
        return facts | {"jobs": self.jobs, "pid": self.pid}

    def lines(self) -> list[str]:
        """Tell it, and how to go on."""
        said: list[str] = []
        if self.strangers:
            text = "left alone, not submitted from this folder"
            said.append(f"{self.name}: {', '.join(self.strangers)} {text}")
        if self.jobs:
            noun = "job" if len(self.jobs) == 1 else "jobs"
            said.append(f"{self.name}: cancelled {noun} {', '.join(self.jobs)}")
        if self.pid is not None:
            said.append(f"{self.name}: told process {self.pid} to stop; it saves checkpoints first")
        if not self.jobs and self.pid is None:
            return [*said, f"{self.name}: nothing to cancel, no run is running or pending"]
        again = f"repeat its command, or sae-sweeps retry {status.shown(self.folder)}"
        return [*said, f"{self.name}: checkpoints are kept; to go on, {again}"]


def cancel(folder: Path) -> Cancelled:
    """Cancel a sweep's jobs that run or wait, and tell the command that trains it here to stop.

    It returns before they have stopped: they save their checkpoints first.

    Raises:
        ConfigError: for a folder that is no sweep's; if SLURM has jobs of the sweep and cannot be
            asked; if the command runs on another machine.
    """
    found = status.read(folder)
    try:
        if found.problem:
            raise cluster.ClusterError(found.problem)
        cluster.cancel(found.jobs)
    except cluster.ClusterError as error:
        raise ConfigError(f"{found.name}'s jobs are not cancelled: {error}") from error
    return Cancelled(found.name, folder, found.jobs, _stop_local(folder), found.strangers)


def _stop_local(folder: Path) -> int | None:
    """Send SIGTERM to the command that holds a sweep, if there is one; its process."""
    lock = SweepFolder(folder).lock
    if not files.is_locked(lock):
        return None
    launch = manifest.read(folder).launches[-1]
    if launch.host != socket.gethostname():
        text = f"{folder} is trained on {launch.host}, by process {launch.pid}"
        raise ConfigError(f"{text}: cancel it there.")
    if not (files.has_open(launch.pid, lock) and _is_ours(launch.pid)):
        text = f"{folder} is in use, but not by process {launch.pid}, which its manifest names"
        raise ConfigError(f"{text}: a command has just begun; try again soon.")
    os.kill(launch.pid, signal.SIGTERM)
    return launch.pid


def _is_ours(pid: int) -> bool:
    """Say whether a process is a `sae-sweeps`, and not another that got its number since."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # macOS has no /proc
        command = ["ps", "-p", str(pid), "-o", "command="]
        try:
            words = subprocess.run(command, capture_output=True, check=False).stdout
        except OSError:
            return False
    return b"sae-sweeps" in words or b"sae_sweeps" in words
