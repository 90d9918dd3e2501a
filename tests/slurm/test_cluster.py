"""What `cluster` reads off a real SLURM: jobs in every state that can be had within seconds."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sae_sweeps.system import cluster
from sae_sweeps.system.cluster import ClusterError, Job

from .conftest import Slurm, until

pytestmark = pytest.mark.xdist_group("slurm")

UNKNOWN = "4000000"

WRAPPED = ("wrap", (Path("/(null)"), Path("/dev/null")))
"""The name and the files of a job without a script of its own."""


@pytest.fixture
def submit(here: Slurm) -> Iterator[Callable[..., str]]:
    """Submits a job that is cancelled after the test."""
    ids: list[str] = []

    def submit(script: str, *options: str) -> str:
        ids.append(here.submit(script, *options))
        return ids[-1]

    yield submit
    here.run("scancel", "--quiet", *ids)
    until(lambda: not here.run("squeue", "--noheader", f"--jobs={','.join(ids)},{UNKNOWN}"), "end")


def job(id: str) -> Job:
    return cluster.jobs([id])[id]


def until_state(id: str, state: str) -> Job:
    until(lambda: job(id).state == state, f"{state} of job {id}")
    return job(id)


def test_jobs_that_wait_run_and_have_ended(submit: Callable[..., str]) -> None:
    done, failed = submit("true"), submit("exit 3")
    array = submit("sleep 300", "--array=0-2%2", "--nodelist=n3")
    held = submit("true", "--hold")
    ids = [held, f"{array}_0", f"{array}_1", f"{array}_2", failed, done]
    until(
        lambda: (
            [cluster.jobs(ids)[id].state for id in ids]
            == ["PENDING", "RUNNING", "RUNNING", "PENDING", "FAILED", "COMPLETED"]
            and job(ids[3]).reason == "JobArrayTaskLimit"
        ),
        "all six states",
    )
    found = cluster.jobs(iter([UNKNOWN, *ids, f"{array}_7", held]))
    assert list(found) == ids
    assert found[held] == Job(held, "PENDING", "", "JobHeldUser", 0, *WRAPPED)
    assert found[f"{array}_0"] == Job(f"{array}_0", "RUNNING", "n3", "", 0, *WRAPPED)
    assert found[f"{array}_2"] == Job(f"{array}_2", "PENDING", "", "JobArrayTaskLimit", 0, *WRAPPED)
    assert found[failed].reason == "NonZeroExitCode"
    assert found[done].node in {"n1", "n2", "n3", "n4"}
    assert [found[id].live for id in ids] == [True, True, True, True, False, False]


@pytest.mark.usefixtures("here")
def test_unknown_jobs_are_not_in_the_answer() -> None:
    assert cluster.jobs([]) == {}
    assert cluster.jobs([UNKNOWN]) == {}
    assert cluster.jobs([UNKNOWN, f"{UNKNOWN}_1", "4000001"]) == {}


@pytest.mark.slow
def test_cancelling(submit: Callable[..., str]) -> None:
    array, other, done = submit("sleep 300", "--array=0-2"), submit("sleep 300"), submit("true")
    held, waiting = submit("sleep 300", "--hold"), submit("sleep 300", "--hold", "--array=0-1")
    until_state(f"{array}_1", "RUNNING")
    until_state(other, "RUNNING")
    until_state(done, "COMPLETED")
    cluster.cancel([f"{array}_1", held, f"{waiting}_0", done, UNKNOWN, f"{UNKNOWN}_3"])
    assert not until_state(f"{array}_1", "CANCELLED").live
    assert not until_state(held, "CANCELLED").live
    assert [job(id).state for id in (f"{array}_0", f"{array}_2", other)] == ["RUNNING"] * 3
    assert job(done).state == "COMPLETED"
    assert not any(each.live for each in cluster.jobs([f"{waiting}_0"]).values())
    assert job(f"{waiting}_1").state == "PENDING"
    cluster.cancel([])
    cluster.cancel([UNKNOWN])
    assert job(other).state == "RUNNING"


@pytest.mark.slow
def test_the_accounting_tells_how_a_job_ended(here: Slurm, submit: Callable[..., str]) -> None:
    failed, cancelled = submit("exit 3", "--nodelist=n1"), submit("sleep 300", "--hold")
    cluster.cancel([cancelled])
    until_state(failed, "FAILED")
    squeue = here.folder / "bin" / "squeue"
    squeue.write_text("#!/bin/sh\n")  # a controller that has forgotten every job
    squeue.chmod(0o755)
    try:
        assert cluster.jobs([failed, cancelled, UNKNOWN]) == {
            failed: Job(failed, "FAILED", "n1", "exit code 3:0", 0, "wrap", ()),
            cancelled: Job(cancelled, "CANCELLED", "", f"by {os.getuid()}", 0, "wrap", ()),
        }
    finally:
        squeue.unlink()


@pytest.mark.slow
def test_a_requeued_job_is_live_all_the_time_and_counts_its_restarts(
    here: Slurm, submit: Callable[..., str]
) -> None:
    id = submit("sleep 300", "--nodelist=n2")
    assert until_state(id, "RUNNING").restarts == 0
    here.run("scontrol", "requeue", id)
    seen: list[Job] = []

    def again() -> bool:
        seen.append(job(id))
        return seen[-1].state == "RUNNING" and seen[-1].restarts == 1

    until(again, "the second start")
    assert all(each.live for each in seen)
    assert any(each.state == "PENDING" and each.restarts == 1 for each in seen)


@pytest.mark.slow
def test_a_preempted_job_is_live_and_pending_again(submit: Callable[..., str]) -> None:
    place = ("--nodelist=n4", "--exclusive")
    low = submit("sleep 300", "--partition=low", *place)
    until_state(low, "RUNNING")
    high = submit("sleep 300", "--partition=high", *place)
    seen: list[Job] = []

    def back() -> bool:
        seen.append(job(low))
        return seen[-1].state == "PENDING" and seen[-1].restarts == 1

    until(back, "the preempted job in the queue")
    assert all(each.live for each in seen)
    assert until_state(high, "RUNNING").node == "n4"
    assert seen[-1].node == ""


@pytest.mark.slow
def test_an_array_of_32_is_told_as_fast_as_one_job(submit: Callable[..., str]) -> None:
    array = submit("true", "--array=0-31", "--hold")
    ids = [f"{array}_{task}" for task in range(32)]
    seconds: dict[int, list[float]] = {1: [], 32: []}
    for _ in range(3):
        for number, taken in seconds.items():
            start = time.perf_counter()
            assert list(cluster.jobs(ids[:number])) == ids[:number]
            taken.append(time.perf_counter() - start)
    assert min(seconds[32]) < 4 * min(seconds[1])


@pytest.mark.slow
def test_without_accounting_the_controller_still_tells_how_jobs_ended(
    here: Slurm, submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", here.env["PATH"].replace(f"{here.folder / 'bin'}:", ""))
    sacct = subprocess.run(["sacct"], capture_output=True, text=True)
    assert "disabled" in sacct.stderr
    id = submit("exit 1")
    assert until_state(id, "FAILED").reason == "NonZeroExitCode"
    assert list(cluster.jobs([UNKNOWN, id])) == [id]


@pytest.mark.slow
def test_a_users_settings_of_squeue_do_not_change_the_answer(
    submit: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "RUNNING")
    monkeypatch.setenv("SQUEUE_PARTITION", "high")
    monkeypatch.setenv("SCANCEL_STATE", "RUNNING")
    id = submit("true", "--hold")
    assert job(id).state == "PENDING"
    cluster.cancel([id])
    until_state(id, "CANCELLED")


@pytest.mark.slow
def test_a_controller_that_does_not_answer_is_an_error(
    here: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (here.folder / "etc" / "slurm.conf").read_text()
    settings = settings.replace(f"SlurmctldPort={here.port}", "SlurmctldPort=9")
    (tmp_path / "slurm.conf").write_text(f"{settings}\nMessageTimeout=1\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    for ask in (cluster.jobs, cluster.cancel):
        with pytest.raises(ClusterError, match="Unable to contact slurm controller") as error:
            ask(["1"])
        assert "scontrol ping" in str(error.value)
        assert "\n" not in str(error.value)
