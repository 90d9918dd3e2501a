"""What can happen to a SLURM job, when, and what the stock launcher makes of it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.conftest import Slurm, until
from tests.slurm.sweeps import end_node, jobs, kill, preempt, trained, wait_for_tokens

SHORT = ("training.tokens=196608", "training.log_every_tokens=1024")
LONG = ("training.tokens=720896", "training.log_every_tokens=1024")
EVALUATION = (
    *("training.tokens=32768", "training.log_every_tokens=1024"),
    *("evaluation.tokens=65536", "evaluation.ce_tokens=65536"),
)
HARVEST = (
    *("training.tokens=524288", "training.log_every_tokens=1024"),
    "stream.chunk_tokens=524288",
)
OFTEN = "checkpoint_minutes=0.002"
DISTURBED_AT = 40_000


def nothing(_: Slurm, __: Sequence[Path]) -> None:
    """Leave it to the time limit."""


def requeue(slurm: Slurm, folders: Sequence[Path]) -> None:
    """As an administrator does."""
    slurm.run("scontrol", "requeue", ",".join(all_jobs(folders)))


def warn(slurm: Slurm, folders: Sequence[Path]) -> None:
    """As SLURM does before the time limit, or before a preemption."""
    slurm.run("scancel", "--signal=USR2", *all_jobs(folders))


def cancel(slurm: Slurm, folders: Sequence[Path]) -> None:
    """As a user does."""
    slurm.run("scancel", *all_jobs(folders))


def take_the_nodes(slurm: Slurm, folders: Sequence[Path]) -> None:
    """Preempt all jobs."""
    preempt(slurm, ",".join(nodes(slurm, folders)))


def lose_the_nodes(slurm: Slurm, folders: Sequence[Path]) -> None:
    """Kill the nodes' daemons and all that they run."""
    for node in nodes(slurm, folders):
        end_node(slurm, node)


def kill_all(_: Slurm, folders: Sequence[Path]) -> None:
    """Kill the processes that train."""
    for folder in folders:
        kill(folder)


def nodes(slurm: Slurm, folders: Sequence[Path]) -> list[str]:
    """The nodes that the jobs are on."""
    listed = slurm.run("squeue", "-h", "-j", ",".join(all_jobs(folders)), "-o", "%N")
    return listed.split()


def all_jobs(folders: Sequence[Path]) -> list[str]:
    """The jobs of the last launch of each sweep."""
    return [job for folder in folders for job in jobs(folder)]


def in_training(slurm: Slurm, folder: Path) -> None:
    """Wait until some tokens are behind."""
    wait_for_tokens(slurm, folder, DISTURBED_AT)


def in_evaluation(slurm: Slurm, folder: Path) -> None:
    """Wait until training is over, and a second more."""
    wait_for_tokens(slurm, folder, 32_768)
    time.sleep(1)


def in_harvest(_: Slurm, folder: Path) -> None:
    """Wait until all is ready, and a second more: the first chunk takes ten times as long."""
    logs = lambda: [log.read_text() for log in folder.glob("runs/*/run.log")]  # noqa: E731
    until(lambda: sum(" training " in log for log in logs()) == 2, "the harvest", 120)
    time.sleep(1)
    assert trained(folder) == 0


@dataclass(frozen=True)
class Trigger:
    """Something that happens to a job."""

    name: str
    act: Callable[[Slurm, Sequence[Path]], None]
    stock: str
    """What the stock launcher makes of it."""
    words: tuple[str, ...] = ()
    length: tuple[str, ...] = SHORT
    ready: Callable[[Slurm, Path], None] = in_training
    user_signal: bool = False
    """Whether the cluster sends SIGUSR2 before it preempts."""


LIMIT = ("hydra.launcher.time=1",)
LATE = ("hydra.launcher.signal_delay_s=1",)
NOT_RUN = "not run"
TRIGGERS = (
    Trigger("scontrol requeue", requeue, "no warning; on from its last checkpoint", (OFTEN,)),
    Trigger("SIGUSR2, time 60", warn, "requeued", ("hydra.launcher.time=60",)),
    Trigger(
        "SIGUSR2, time 8",
        warn,
        "FAILED: 'timed-out too many times'",
        ("hydra.launcher.time=8",),
    ),
    Trigger(
        "time limit 1 min, warned 20 s before",
        nothing,
        "FAILED by default (max_num_timeout=0); requeued with max_num_timeout=3",
        (*LIMIT, "hydra.launcher.signal_delay_s=20"),
        LONG,
    ),
    Trigger(
        "time limit 1 min, warned 1 s before",
        nothing,
        NOT_RUN,
        (*LIMIT, *LATE),
        LONG,
    ),
    Trigger(
        "time limit 1 min, SIGTERM only, then retry",
        nothing,
        NOT_RUN,
        (*LIMIT, *LATE, "hydra.launcher.extra={additional_parameters:{signal:CONT@1}}"),
        LONG,
    ),
    Trigger(
        "preemption, GraceTime 0",
        take_the_nodes,
        "SIGKILL after 5 s; on from its last checkpoint",
        ("hydra.launcher.partition=low",),
    ),
    Trigger(
        "preemption, GraceTime 20",
        take_the_nodes,
        "SIGTERM ignored; goes on until the grace is over",
        ("hydra.launcher.partition=grace",),
    ),
    Trigger(
        "preemption, GraceTime 20, user signal",
        take_the_nodes,
        "requeued",
        ("hydra.launcher.partition=grace",),
        user_signal=True,
    ),
    Trigger(
        "preemption, GraceTime 0, user signal",
        take_the_nodes,
        "broken 3 of 3: requeued twice, told as FAILED",
        ("hydra.launcher.partition=low",),
        user_signal=True,
    ),
    Trigger("node death", lose_the_nodes, "requeued by SLURM", (OFTEN,)),
    Trigger("kill -9 of the process, then retry", kill_all, "UncompletedJobError", (OFTEN,)),
    Trigger("scancel, then retry", cancel, "UncompletedJobError"),
    Trigger("SIGUSR2 in a long evaluation", warn, NOT_RUN, length=EVALUATION, ready=in_evaluation),
    Trigger("SIGUSR2 in the harvest of a chunk", warn, NOT_RUN, length=HARVEST, ready=in_harvest),
)
