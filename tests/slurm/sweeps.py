"""Sweeps for tests on a real SLURM: submit them, disturb them, compare what they leave."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from tests.support.launches import the_launches

from .conftest import Slurm, until

WORDS = (
    *("method=topk,mutual_choice", "k=8", "d_sae=256", "device=cpu", "tracking=off"),
    *("stream.batch_tokens=1024", "stream.chunk_tokens=8192", "stream.calibration_tokens=4096"),
    *("stream.repeat=true", "evaluation.tokens=4096", "evaluation.ce_tokens=1024"),
)
"""Two runs in one pack, whose length is `training.tokens`."""
QUICK = "target_model=synthetic"
"""To the stream one target model is as another, and this one takes jobs no 3 s to import."""
OWN = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
JOB = ("hydra/launcher=slurm", "hydra.launcher.memory=1500M", "hydra.launcher.cpus=2")


def sae_sweeps(
    cluster: Slurm, home: Path, *words: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """Call the command line in `home`, on a machine of the cluster."""
    launches, env = the_launches(), {**cluster.env, **OWN, **env}
    launch = launches.start(home.parent, *words, cwd=home.name, env=env)
    return subprocess.CompletedProcess(words, launch.wait(300), launch.out, launch.err)


def sae_sweeps_itself(
    cluster: Slurm, home: Path, *words: str, **env: str
) -> subprocess.CompletedProcess[str]:
    """The same by Python's own start, which alone reads PYTHONPATH and has a `__main__`."""
    return subprocess.run(
        [sys.executable, "-m", "sae_sweeps", *words],
        cwd=home,
        env={**cluster.env, **OWN, **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


def sweep(*words: str) -> Iterable[str]:
    """The words of the sweep; of an option that is given again, the last."""
    return {word.partition("=")[0]: word for word in (*WORDS, "name=it", *words)}.values()


def submit(cluster: Slurm, home: Path, *words: str, **env: str) -> Path:
    """Submit a sweep; gives its folder."""
    home.mkdir(parents=True, exist_ok=True)
    done = sae_sweeps(cluster, home, *sweep(*JOB, *words), **env)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "outputs" / "it"


def status(cluster: Slurm, folder: Path) -> dict[str, Any]:
    """What `sae-sweeps status --json` says of a sweep."""
    done = sae_sweeps(cluster, folder.parent, "status", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    [found] = json.loads(done.stdout)
    return found


def jobs(folder: Path) -> list[str]:
    """The jobs of the last launch."""
    packs = json.loads((folder / "sweep.json").read_text())["packs"]
    return [pack["job"] for pack in packs]


def trained(folder: Path) -> int:
    """Tokens that the furthest run has in its metrics."""
    lines = [line for path in _metrics(folder) for line in path.read_text().splitlines(True)]
    return max((json.loads(line)["tokens"] for line in lines if line.endswith("\n")), default=0)


def _metrics(folder: Path) -> Iterator[Path]:
    return (folder / "runs").glob("*/metrics.jsonl")


def wait_for_tokens(cluster: Slurm, folder: Path, tokens: int) -> None:
    """Wait until a run got so far; tell what the cluster did in its stead if none does."""
    try:
        until(lambda: trained(folder) >= tokens, f"{tokens} tokens", 120)
    except pytest.fail.Exception as late:
        pytest.fail(f"{late}\n{scene(cluster, folder)}")


def scene(cluster: Slurm, folder: Path) -> str:
    """Tell how the cluster, its jobs and a sweep's runs are."""
    told = [f"{trained(folder)} tokens, {started(folder)} starts"]
    for words in (["sinfo", "-N", "-l"], ["squeue", "-a"], ["scontrol", "show", "job"]):
        told.append(f"$ {' '.join(words)}\n{cluster.run(*words)}")
    for pattern in ("packs/*/*.out", "packs/*/*.err", "runs/*/run.log"):
        logs = folder.glob(pattern)
        told += [f"{log.relative_to(folder)}:\n{log.read_text()[-2_000:]}" for log in logs]
    daemon = (cluster.folder / "log" / "slurmctld.log").read_text().splitlines()
    return "\n".join([*told, *daemon[-100:]])


def wait_for_end(cluster: Slurm, folder: Path, seconds: float = 180) -> dict[str, Any]:
    """Wait until nothing is under way; the last status."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        until(lambda: is_over(cluster, folder), "the sweep's end", left, every_s=0.2)
        if (found := status(cluster, folder))["over"]:
            return found


def is_over(cluster: Slurm, folder: Path) -> bool:
    """Say whether all runs have ended or their jobs have; cheaper than asking for the status."""
    endings = ("result.json", "failed.json")
    manifest = json.loads((folder / "sweep.json").read_text())
    runs = [folder / "runs" / point["run"] for point in manifest["points"]]
    if all(any((run / name).exists() for name in endings) for run in runs):
        return True
    return not cluster.run("squeue", "-h", "-j", ",".join(jobs(folder)))


def left_behind(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Of each run weights, rows and figures, less what depends on the time."""
    found: dict[str, tuple[Any, ...]] = {}
    for run in sorted((folder / "runs").iterdir()):
        weights = load_file(run / "checkpoint" / "weights.safetensors")
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            del row["perf/tokens_per_s"]
        result = json.loads((run / "result.json").read_text())
        numbers = {name: tensor.tolist() for name, tensor in weights.items()}
        found[run.name] = numbers, rows, result["metrics"], result["batch"], result["train"]
    return found


def resumed_at(folder: Path) -> list[int]:
    """Where attempts went on, in tokens, of all runs."""
    logs = [log.read_text().splitlines() for log in (folder / "runs").glob("*/run.log")]
    lines = [line for log in logs for line in log if " resumed at " in line]
    return [int(line.split(" resumed at ")[1].split()[0]) for line in lines]


def started(folder: Path) -> int:
    """How many attempts began."""
    starts = [json.loads(path.read_text()) for path in folder.glob("packs/*.starts.json")]
    return sum(map(len, starts))


# --- What can happen to a job --------------------------------------------------------------


def processes(folder: Path) -> list[int]:
    """The processes that train packs of this sweep."""
    mark = str(folder / "packs")
    return [
        process.pid
        for process in _processes()
        if "submitit.core._submit" in process.command[1:5] and mark in process.command[-2]
    ]


def kill(folder: Path) -> None:
    """End a pack's process as the kernel does when memory is short."""
    for pid in processes(folder):
        os.kill(pid, signal.SIGKILL)


def preempt(cluster: Slurm, node: str) -> str:
    """Take a node, or several (`n1,n2`), for a job of the highest partition."""
    where = (f"--nodelist={node}", "--exclusive", "--mem=0")
    return cluster.submit("sleep 1", "-p", "high", *where)


def end_node(cluster: Slurm, node: str) -> None:
    """Have a node die: its daemon, its jobs' steps and all their processes."""
    conf = f"SLURM_CONF={cluster.folder}/etc/slurm.conf"
    doomed: set[int] = set()
    for process in _processes():
        if process.command[:3] == ["slurmd", "-N", node] and conf in process.env:
            doomed.add(process.pid)
        elif f"SLURMD_NODENAME={node}" in process.env and conf in process.env:
            doomed.add(process.pid)
            stepd = _read(process.parent)
            if stepd and stepd.command[0].startswith("slurmstepd"):
                doomed.add(stepd.pid)
    for pid in doomed:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def start_node(cluster: Slurm, node: str) -> None:
    """Bring a dead node back."""
    cluster.run("slurmd", "-N", node, "-f", str(cluster.folder / "etc" / "slurm.conf"))


class Process(NamedTuple):
    """What Linux tells of a process."""

    pid: int
    parent: int
    command: list[str]
    env: list[str]


def _processes() -> Iterator[Process]:
    for path in Path("/proc").glob("[0-9]*"):
        if found := _read(int(path.name)):
            yield found


def _read(pid: int) -> Process | None:
    home = Path("/proc", str(pid))
    try:
        command, env = ((home / name).read_bytes().decode() for name in ("cmdline", "environ"))
        parent = int((home / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, UnicodeDecodeError):
        return None
    return Process(pid, parent, command.split("\0"), env.split("\0")) if command else None
