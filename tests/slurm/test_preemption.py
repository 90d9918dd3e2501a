"""Whatever ends a job, its runs go on where they were, to the weights of an undisturbed sweep."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Slurm, until
from .sweeps import (
    WORDS,
    end_node,
    jobs,
    kill,
    left_behind,
    preempt,
    processes,
    resumed_at,
    sae_sweeps,
    start_node,
    started,
    status,
    submit,
    trained,
    wait_for_end,
    wait_for_tokens,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

LENGTH = ("training.tokens=262144", "training.log_every_tokens=8192")
DISTURBED_AT = 40_000
OFTEN = "checkpoint_minutes=0.002"
"""Where no signal comes, or too late, the clock saves."""


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    done = sae_sweeps(slurm, home, *WORDS, *LENGTH, "name=it")
    assert done.returncode == 0, done.stderr
    return home / "outputs" / "it"


def node_of(slurm: Slurm, folder: Path) -> str:
    [job] = jobs(folder)
    return slurm.run("squeue", "-h", "-j", job, "-o", "%N")


def requeue(slurm: Slurm, folder: Path) -> None:
    slurm.run("scontrol", "requeue", *jobs(folder))


def warn(slurm: Slurm, folder: Path) -> None:
    slurm.run("scancel", "--signal=USR2", *jobs(folder))


def take_the_nodes(slurm: Slurm, _: Path) -> None:
    preempt(slurm)


def lose_the_node(slurm: Slurm, folder: Path) -> None:
    node = node_of(slurm, folder)
    end_node(slurm, node)
    until(lambda: not processes(folder), "the processes' end")
    until(lambda: "down" in slurm.run("sinfo", "-h", "-n", node, "-o", "%t"), "its loss", 60)
    start_node(slurm, node)


@pytest.mark.parametrize(
    ("disturb", "options"),
    [
        pytest.param(requeue, [OFTEN], id="an administrator requeues the job"),
        pytest.param(warn, [], id="SIGUSR2"),
        pytest.param(warn, ["hydra.launcher.time=8"], id="SIGUSR2 in a short job"),
        pytest.param(
            take_the_nodes, ["hydra.launcher.partition=low"], id="preemption without grace"
        ),
        pytest.param(take_the_nodes, ["hydra.launcher.partition=grace"], id="preemption, grace"),
        pytest.param(lose_the_node, [OFTEN], id="the node is lost"),
    ],
)
def test_a_disturbed_job_goes_on_and_ends_alike(
    disturb: Callable[[Slurm, Path], None],
    options: list[str],
    slurm: Slurm,
    undisturbed: Path,
    tmp_path: Path,
) -> None:
    folder = submit(slurm, tmp_path, *LENGTH, *options)
    wait_for_tokens(folder, DISTURBED_AT)
    disturb(slurm, folder)
    found = wait_for_end(slurm, folder)
    assert found["counts"]["done"] == 2, found
    assert started(folder) == 2
    assert all(tokens > 0 for tokens in resumed_at(folder)) and len(resumed_at(folder)) == 2
    assert left_behind(folder) == left_behind(undisturbed)


def test_a_killed_process_is_lost_and_retried(
    slurm: Slurm, undisturbed: Path, tmp_path: Path
) -> None:
    folder = submit(slurm, tmp_path, *LENGTH, OFTEN)
    wait_for_tokens(folder, DISTURBED_AT)
    kill(folder)
    found = wait_for_end(slurm, folder)
    assert found["counts"]["lost"] == 2
    done = sae_sweeps(slurm, tmp_path, "retry", str(folder))
    assert done.returncode == 0, done.stderr
    assert "2 runs to train, 2 of them from a checkpoint" in done.stdout
    assert wait_for_end(slurm, folder)["counts"]["done"] == 2
    assert len(resumed_at(folder)) == 2
    assert left_behind(folder) == left_behind(undisturbed)


def test_cancelled_runs_are_kept_and_go_on_when_asked(
    slurm: Slurm, undisturbed: Path, tmp_path: Path
) -> None:
    folder = submit(slurm, tmp_path, *LENGTH)
    wait_for_tokens(folder, DISTURBED_AT)
    [job] = jobs(folder)
    assert json.loads(sae_sweeps(slurm, tmp_path, "cancel", str(folder), "--json").stdout)[0][
        "jobs"
    ] == [job]
    assert wait_for_end(slurm, folder)["counts"]["lost"] == 2
    before = trained(folder)
    assert sae_sweeps(slurm, tmp_path, "retry", str(folder)).returncode == 0
    assert wait_for_end(slurm, folder)["counts"]["done"] == 2
    assert min(resumed_at(folder)) >= DISTURBED_AT and max(resumed_at(folder)) >= before
    assert left_behind(folder) == left_behind(undisturbed)


def test_a_pack_without_progress_stops_itself(slurm: Slurm, tmp_path: Path) -> None:
    """It is killed each time before its first checkpoint, and SLURM starts it again."""
    folder = submit(slurm, tmp_path, *LENGTH, "checkpoint_minutes=60")
    [job] = jobs(folder)
    for times in range(1, 4):
        until(lambda n=times: started(folder) == n, f"start {times}", 60)
        slurm.run("scontrol", "requeue", job)
        until(lambda: not processes(folder), "the processes' end", 30)
    found = wait_for_end(slurm, folder)
    assert found["counts"]["failed"] == 2
    assert all("3 times more without any progress" in run["reason"] for run in found["runs"])
    assert "state" in status(slurm, folder)["runs"][0]
