"""The launcher `slurm` on a real cluster: what is submitted, told, left behind and refused."""

import json
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .conftest import Slurm, until
from .sweeps import JOB, QUICK, WORDS, jobs, left_behind, sae_sweeps, status, submit, wait_for_end

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

SHORT = (QUICK, "training.tokens=16384", "training.log_every_tokens=4096")


@pytest.fixture(scope="module")
def local(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short sweep, trained here."""
    home = tmp_path_factory.mktemp("local")
    done = sae_sweeps(slurm, home, *WORDS, *SHORT, "name=it", "seed=0,1")
    assert done.returncode == 0, done.stderr
    return home / "outputs" / "it"


@contextmanager
def no_job_starting(slurm: Slurm) -> Generator[None]:
    """Keep what is submitted waiting."""
    slurm.run("scontrol", "update", "nodename=ALL", "state=drain", "reason=test")
    try:
        yield
    finally:
        slurm.run("scontrol", "update", "nodename=ALL", "state=resume")


def test_a_sweep_is_submitted_and_ends_as_the_local_one(
    slurm: Slurm, local: Path, tmp_path: Path
) -> None:
    words = (*SHORT, "seed=0,1", "hydra.launcher.max_runs_per_pack=1")
    with no_job_starting(slurm):  # or, on a busy machine, they may end before the second launch
        folder = submit(slurm, tmp_path, *words)
        assert len(jobs(folder)) == 4
        assert status(slurm, folder)["counts"]["pending"] == 4  # the command has not waited
        again = sae_sweeps(slurm, tmp_path, *WORDS, *JOB, "name=it", *words)
    assert "0 runs to train" in again.stdout and "under way in job" in again.stdout
    assert len(json.loads((folder / "sweep.json").read_text())["earlier"]) == 0
    found = wait_for_end(slurm, folder)
    assert found["counts"]["done"] == 4
    assert left_behind(folder) == left_behind(local)
    for job in jobs(folder):
        ended = ("sacct", "-o", "State", "-j", job)
        until(lambda command=ended: "COMPLETED" in slurm.run(*command), "the job's end")
    assert (folder / "pareto.png").exists()
    # The same command once more finds nothing to do, and needs no job for it.
    more = sae_sweeps(slurm, tmp_path, *WORDS, *JOB, "name=it", *words)
    assert more.returncode == 0 and "4 finished before" in more.stdout


def test_waiting_ends_with_what_became_of_the_runs(slurm: Slurm, tmp_path: Path) -> None:
    """One run fails, by a learning rate that no loss survives."""
    words = (*SHORT, "name=it", "optimizer.lr=3e-3,1e30", "training.gradient_clip_norm=1e30")
    tmp_path.mkdir(exist_ok=True)
    done = sae_sweeps(slurm, tmp_path, *WORDS, *JOB, *words, "hydra.launcher.wait=true")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "it: 2 of 4 runs are finished" in done.stdout
    failures = [line for line in done.stderr.splitlines() if " failed: " in line]
    assert len(failures) == 2 and all("FloatingPointError: the loss is" in f for f in failures)
    folder = tmp_path / "outputs" / "it"
    [job] = jobs(folder)
    until(lambda: "FAILED" in slurm.run("sacct", "-o", "State", "-j", job), "the job's end")
    log = next(log for log in folder.glob("runs/*/run.log") if "Traceback" in log.read_text())
    assert "FloatingPointError" in log.read_text()
    assert {run["state"] for run in status(slurm, folder)["runs"]} == {"done", "failed"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["partition=nope"], "SLURM refused the jobs: invalid partition specified: nope"),
        (["gpus=9"], "SLURM refused the jobs: Batch job submission failed: Requested node conf"),
        (["extra={nodelst: n1}"], "extra.nodelst is not possible. Did you mean 'nodelist'?"),
        (["extra={nodes: 2}"], "extra.nodes is not possible."),
        (["time=soon"], "hydra.launcher.time is 'soon', expected minutes"),
        (["cpus=0"], "hydra.launcher.cpus is 0, expected at least 1."),
        (["time=2"], "120, expected less seconds than hydra.launcher.time has (2 min)."),
        (["objective=fvu"], "hydra.launcher.objective needs hydra.launcher.wait=true."),
        (["memory=lots"], "SLURM refused the jobs"),
    ],
)
def test_a_request_that_cannot_be_is_refused_and_leaves_nothing(
    words: list[str], expected: str, slurm: Slurm, local: Path, tmp_path: Path
) -> None:
    options = [f"hydra.launcher.{word}" for word in words]
    for home in (tmp_path, local.parent.parent):  # a new sweep, and one that is there
        before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
        done = sae_sweeps(slurm, home, *WORDS, *JOB, *SHORT, "name=it", "seed=2", *options)
        assert done.returncode == 1
        [line] = done.stderr.splitlines()
        assert expected in line
        after = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
        assert after.keys() - {local / ".lock"} == before.keys() - {local / ".lock"}
    assert not (tmp_path / "outputs" / "it").exists()


def test_without_slurm_the_launcher_says_so(slurm: Slurm, tmp_path: Path) -> None:
    bare = {**slurm.env, "PATH": str(Path(sys.executable).parent)}
    done = subprocess.run(
        [sys.executable, "-m", "sae_sweeps", *WORDS, *JOB],
        cwd=tmp_path,
        env=bare,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.endswith("there is no sbatch here: call this on a machine of the cluster.\n")
