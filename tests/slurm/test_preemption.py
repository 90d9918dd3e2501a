"""Whatever ends a job, its runs go on where they were, to the weights of an undisturbed sweep."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support.slow_model import SLOW_TARGET

from .conftest import NODES, Slurm, new_cluster, start, until
from .sweeps import (
    end_node,
    jobs,
    kill,
    left_behind,
    preempt,
    processes,
    resumed_at,
    sae_sweeps,
    scene,
    start_node,
    started,
    submit,
    sweep,
    trained,
    wait_for_end,
    wait_for_tokens,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

LENGTH = (*SLOW_TARGET, "training.tokens=81920", "training.log_every_tokens=2048")
DISTURBED_AT = 16_000
OFTEN = "checkpoint_minutes=0.002"
"""Where no signal comes, or too late, the clock saves."""
A_NODE_EACH = "hydra.launcher.memory=3900M"
USER_SIGNAL = "SlurmctldParameters=preempt_send_user_signal"


def node_of(slurm: Slurm, folder: Path) -> str:
    [job] = jobs(folder)
    return slurm.run("squeue", "-h", "-j", job, "-o", "%N")


def requeue(slurm: Slurm, folder: Path) -> None:
    slurm.run("scontrol", "requeue", *jobs(folder))


def warn(slurm: Slurm, folder: Path) -> None:
    slurm.run("scancel", "--signal=USR2", *jobs(folder))


def take_the_node(slurm: Slurm, folder: Path) -> None:
    preempt(slurm, node_of(slurm, folder))


def lose_the_node(slurm: Slurm, folder: Path) -> None:
    node = node_of(slurm, folder)
    end_node(slurm, node)
    until(lambda: not processes(folder), "the processes' end")
    # The controller finds out by itself as well, after half a minute or two.
    slurm.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=lost")
    start_node(slurm, node)


def kill_the_process(_: Slurm, folder: Path) -> None:
    kill(folder)


def cancel(slurm: Slurm, folder: Path) -> None:
    done = sae_sweeps(slurm, folder.parent, "cancel", str(folder), "--json")
    [told] = json.loads(done.stdout)
    assert told["jobs"] == jobs(folder)


def start_in_vain(slurm: Slurm, folder: Path) -> None:
    """Requeue the job each time before its first checkpoint."""
    for times in range(1, 4):
        until(lambda n=times: started(folder) == n, f"start {times}", 60)
        slurm.run("scontrol", "requeue", *jobs(folder))
        until(lambda: not processes(folder), "the processes' end", 30)


class Trigger(NamedTuple):
    """What happens to a job."""

    act: Callable[[Slurm, Path], None]
    options: tuple[str, ...] = ()
    at: int = DISTURBED_AT
    signalled: bool = False
    """Whether the cluster sends SIGUSR2 when it preempts, though it requeues the job itself."""


LOW = "hydra.launcher.partition=low"
GOES_ON = {
    "an administrator requeues the job": Trigger(requeue, (OFTEN,)),
    "SIGUSR2, in a job that submitit would let end": Trigger(warn, ("hydra.launcher.time=8",)),
    "preemption without grace": Trigger(take_the_node, (LOW,)),
    "preemption without grace, signalled": Trigger(take_the_node, (LOW,), signalled=True),
    "preemption, grace": Trigger(take_the_node, ("hydra.launcher.partition=grace",)),
    "the node is lost": Trigger(lose_the_node, (OFTEN,)),
}
IS_LOST = {
    "the process is killed": Trigger(kill_the_process, (OFTEN,)),
    "a user cancels": Trigger(cancel),
}
IN_VAIN = {"no progress": Trigger(start_in_vain, ("checkpoint_minutes=60",), at=0)}


class Met(NamedTuple):
    """A sweep that met a trigger."""

    folder: Path
    before: int
    """Tokens that it had trained when nothing more was under way."""
    end: dict[str, Any]
    """What its status said then."""
    scene: str
    """How the cluster was then."""
    said: str = ""
    """What `retry` said where runs were lost, which then trains them to their end."""


def meet(slurm: Slurm, home: Path, trigger: Trigger) -> Met:
    folder = submit(slurm, home, *LENGTH, A_NODE_EACH, *trigger.options)
    wait_for_tokens(slurm, folder, trigger.at)
    trigger.act(slurm, folder)
    end = wait_for_end(slurm, folder)
    met = Met(folder, trained(folder), end, scene(slurm, folder))
    if not met.end["counts"]["lost"]:
        return met
    done = sae_sweeps(slurm, home, "retry", str(folder))
    assert done.returncode == 0, done.stderr
    assert wait_for_end(slurm, folder)["counts"]["done"] == 2
    return met._replace(said=done.stdout)


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    done = sae_sweeps(slurm, home, *sweep(*LENGTH))
    assert done.returncode == 0, done.stderr
    return home / "outputs" / "it"


@pytest.fixture(scope="module")
def signalling() -> Iterator[Slurm]:
    """Another cluster, which sends SIGUSR2 to what it preempts."""
    cluster = new_cluster(nodes=1)
    try:
        start(cluster, "--nodes", "1", "--extra", USER_SIGNAL)
        yield cluster
    finally:
        cluster.script("stop")
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def sweeps(
    slurm: Slurm, signalling: Slurm, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mapping[str, Future[Met]]]:
    """All disturbed sweeps, as many at the same time as there are nodes: most of it is waiting."""
    with ThreadPoolExecutor(NODES) as pool:
        # Those that take longest first.
        triggers = (IN_VAIN | GOES_ON | IS_LOST).items()
        homes = {name: tmp_path_factory.mktemp("disturbed") for name, _ in triggers}
        yield {
            name: pool.submit(meet, signalling if it.signalled else slurm, homes[name], it)
            for name, it in triggers
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("trigger", GOES_ON)
def test_a_disturbed_job_goes_on_and_ends_alike(
    trigger: str, sweeps: Mapping[str, Future[Met]], undisturbed: Path
) -> None:
    met = sweeps[trigger].result()
    assert met.end["counts"]["done"] == 2, f"{met.end}\n{met.scene}"
    assert started(met.folder) >= 2  # more, if another test's preemption meets it too
    assert all(tokens > 0 for tokens in resumed_at(met.folder)) and len(resumed_at(met.folder)) == 2
    assert left_behind(met.folder) == left_behind(undisturbed)
    # To submitit no attempt may have ended by an error, though SLURM refused a second requeue.
    logs = [path.read_text() for path in met.folder.glob("packs/*/*.out")]
    assert logs and not any("triggered an exception" in log for log in logs)


@pytest.mark.parametrize("trigger", IS_LOST)
def test_what_is_lost_goes_on_when_asked(
    trigger: str, sweeps: Mapping[str, Future[Met]], undisturbed: Path
) -> None:
    met = sweeps[trigger].result()
    assert met.end["counts"]["lost"] == 2, f"{met.end}\n{met.scene}"
    assert "2 runs to train, 2 of them from a checkpoint" in met.said
    assert len(resumed_at(met.folder)) == 2
    if OFTEN not in IS_LOST[trigger].options:  # then the signal saved all there was
        assert max(resumed_at(met.folder)) >= met.before >= DISTURBED_AT
    assert left_behind(met.folder) == left_behind(undisturbed)


def test_a_pack_without_progress_stops_itself(sweeps: Mapping[str, Future[Met]]) -> None:
    """It is killed each time before its first checkpoint, and SLURM starts it again."""
    [name] = IN_VAIN
    found = sweeps[name].result().end
    assert found["counts"]["failed"] == 2
    assert all("3 times more without any progress" in run["reason"] for run in found["runs"])
