"""A job is a sweep's only if its name and folder are: copies and planted numbers are not."""

import json
import shutil
from pathlib import Path

import pytest

from tests.support.slow_model import SLOW_TARGET

from .conftest import Slurm, until
from .sweeps import jobs, processes, sae_sweeps, status, submit, wait_for_tokens

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

LEFT = "left alone, not submitted from this folder"
LOST = "is not of this sweep's folder"


def plant(folder: Path, job: str) -> None:
    """Have a manifest name another job."""
    found = json.loads((folder / "sweep.json").read_text())
    for pack in found["packs"]:
        pack["job"] = job
    (folder / "sweep.json").write_text(json.dumps(found))


def state(slurm: Slurm, job: str) -> str:
    return slurm.run("squeue", "-h", "-j", job, "-o", "%T")


def refuses(slurm: Slurm, folder: Path, job: str) -> None:
    """See that the verbs leave a job alone, and say so."""
    done = sae_sweeps(slurm, folder.parent, "cancel", folder.name)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{job} {LEFT}" in done.stdout and "nothing to cancel" in done.stdout
    found = status(slurm, folder)
    assert {run["state"] for run in found["runs"]} == {"lost"} and found["over"]
    assert all(f"its job {job} {LOST}" in run["reason"] for run in found["runs"])
    done = sae_sweeps(slurm, folder.parent, "wait", folder.name, "--timeout-minutes", "0.02")
    assert done.returncode == 1 and "it is not over: 2 lost" in done.stderr, done.stderr
    assert state(slurm, job) == "RUNNING"


def test_a_copy_leaves_the_originals_jobs_and_anybodys_alone(slurm: Slurm, tmp_path: Path) -> None:
    folder = submit(slurm, tmp_path, *SLOW_TARGET, "training.tokens=1000000")
    [job] = jobs(folder)
    wait_for_tokens(slurm, folder, 2048)
    copy = folder.with_name("copy")
    shutil.copytree(folder, copy)
    refuses(slurm, copy, job)
    stranger = slurm.submit("sleep 300", "--nodelist=n4", "--job-name=it")
    try:
        until(lambda: state(slurm, stranger) == "RUNNING", "another's job")
        plant(copy, stranger)
        refuses(slurm, copy, stranger)
        again = sae_sweeps(slurm, tmp_path, "retry", str(copy))
        assert again.returncode == 0, again.stderr  # its runs are lost, and begin in the copy
        mine = jobs(copy)
        assert mine and not {job, stranger} & set(mine)
        done = sae_sweeps(slurm, tmp_path, "cancel", str(copy))
        assert f"cancelled job {mine[0]}" in done.stdout
        assert state(slurm, job) == state(slurm, stranger) == "RUNNING"
    finally:
        slurm.run("scancel", stranger)
    linked = tmp_path / "linked"
    linked.symlink_to("outputs/it")
    done = sae_sweeps(slurm, tmp_path, "cancel", str(linked))
    assert f"cancelled job {job}" in done.stdout
    until(lambda: not processes(folder), "the job's end", 60)
