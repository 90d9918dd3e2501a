"""What SLURM says about jobs, asked through its own commands, and how to end them."""

import os
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sae_sweeps.errors import one_line

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL"}
    | {"OUT_OF_MEMORY", "PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"}
)
"""The states a job does not leave by itself; a requeued job is PENDING again, or on its way there.

A word that is missing here, from a SLURM to come, counts as a job that goes on.
"""
TIMEOUT_SECONDS = 20.0
IDS_PER_CALL = 500
"""A command line has room for some ten thousand; SLURM reads a few hundred at no cost."""
NOTHING = frozenset({"", "None", "None assigned", "(null)", "N/A", "n/a"})
QUEUE_FORMAT = (
    "JobArrayID:64|,State:32|,NodeList:256|,RestartCnt:16|,Name:256|,"
    "Command:4096|,StdOut:4096|,Reason:256"
)
RECORD_FORMAT = "JobID,State,NodeList,ExitCode,JobName"
"""Not `Reason`, which is why a job once waited, even when it has ended since."""
NOT_OURS = ("SQUEUE_", "SACCT_", "SCANCEL_")
"""Variables by which a user's shell changes what the commands print, select or ask back."""
NOT_THERE = ("invalid job id specified", "already completing or completed")


class ClusterError(RuntimeError):
    """SLURM could not be asked; the message is one line and says what to do."""


@dataclass(frozen=True)
class Job:
    """SLURM's last word about one job, or about one task of an array."""

    id: str
    """`12`, or `12_3` for a task of an array."""
    state: str
    """SLURM's word, such as `PENDING`."""
    node: str
    """Where it runs or ran; empty before it starts."""
    reason: str
    """Why it waits or how it ended, in SLURM's words; often empty.

    A job that was cancelled while it waited still tells why it did.
    """
    restarts: int
    """How often it was requeued; 0 where only the accounting remembers the job."""
    name: str
    """What it is called."""
    files: tuple[Path, ...]
    """Its script and its output; none where only the accounting remembers the job."""

    @property
    def live(self) -> bool:
        """Whether SLURM runs the job or will."""
        return self.state not in ENDED


def jobs(ids: Iterable[str]) -> dict[str, Job]:
    """Tell what SLURM knows of these jobs, by id and in the order asked.

    The controller is asked first: it knows every job that waits or runs, and for some minutes
    (`MinJobAge`) those that ended. Older ones are looked up in the accounting; where there is
    none, they are missing from the result, as is a job that SLURM never had, and a task of an
    array that was cancelled before it started: SLURM forgets it at once. A task has an id of its
    own (`12_3`); the array's (`12`) names none.

    Raises:
        ClusterError: where there is no SLURM, or its controller does not answer.
    """
    wanted = list(dict.fromkeys(ids))
    found = {job.id: job for batch in _batches(_arrays(wanted)) for job in _queued(batch)}
    gone = [id for id in wanted if id not in found]
    records = {job.id: job for batch in _batches(_arrays(gone)) for job in _recorded(batch)}
    known = records | found
    return {id: known[id] for id in wanted if id in known}


def cancel(ids: Iterable[str]) -> None:
    """End these jobs, waiting or running; jobs that have ended or never were are no error.

    Returns once SLURM has taken the order: a running job first gets SIGTERM, and the time that
    the cluster's `KillWait` leaves it.

    Raises:
        ClusterError: where there is no SLURM, it does not answer, or a job is somebody else's.
    """
    for batch in _batches(list(dict.fromkeys(ids))):
        _ask("scancel", *batch)


def _queued(ids: Sequence[str]) -> Iterator[Job]:
    """Read what the controller knows of jobs and of all tasks of arrays."""
    words = ("--noheader", "--all", "--array", "--states=all", f"--Format={QUEUE_FORMAT}")
    for line in _ask("squeue", *words, f"--jobs={','.join(ids)}").splitlines():
        fields = [field.strip() for field in line.split("|", 7)]
        if len(fields) == 8:
            id, state, node, restarts, name, script, out, reason = fields
            count = int(restarts) if restarts.isdecimal() else 0
            files = tuple(Path("/", path) for path in (script, out))
            yield Job(id, state, _text(node), _text(reason), count, name, files)


def _recorded(ids: Sequence[str]) -> Iterator[Job]:
    """Read how jobs ended from the accounting, where it is kept; not every cluster keeps it."""
    words = ("--noheader", "--allocations", "--parsable2", f"--format={RECORD_FORMAT}")
    try:
        text = _ask("sacct", *words, f"--jobs={','.join(ids)}")
    except ClusterError:
        return
    for line in text.splitlines():
        fields = line.split("|", 4)
        if len(fields) == 5:
            id, state, node, code, name = fields
            state, _, by = state.partition(" ")  # "CANCELLED by 1000"
            # A job that the controller has forgotten cannot go on, whatever a record that was
            # never closed says.
            if state in ENDED:
                ended = "" if code == "0:0" else f"exit code {code}"
                yield Job(id, state, _text(node), by or ended, 0, name, ())


def _ask(*command: str) -> str:
    """Run one of SLURM's commands; unknown jobs are no error, they are just not in its answer."""
    name = command[0]
    env = {key: value for key, value in os.environ.items() if not key.startswith(NOT_OURS)}
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT_SECONDS,
            env=env,
        )
    except subprocess.TimeoutExpired:
        text = f"SLURM's {name} gave no answer in {TIMEOUT_SECONDS:.0f} s"
        raise ClusterError(f"{text}; try again later, or see `scontrol ping`.") from None
    except OSError as error:
        text = f"cannot run SLURM's {name}: {error.strerror}"
        raise ClusterError(f"{text}; call this on a machine of the cluster.") from None
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in errors if not any(text in line.lower() for text in NOT_THERE)]
    if done.returncode and (errors or not done.stderr.strip()):
        said = one_line(errors[-1]) if errors else f"nothing, with exit code {done.returncode}"
        raise ClusterError(f"SLURM's {name} says: {said}; try again, or see `scontrol ping`.")
    return done.stdout


def _arrays(ids: Iterable[str]) -> list[str]:
    """Name each job, and each array once however many of its tasks are among `ids`."""
    return list(dict.fromkeys(id.partition("_")[0] for id in ids))


def _batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), IDS_PER_CALL):
        yield ids[start : start + IDS_PER_CALL]


def _text(field: str) -> str:
    return "" if field in NOTHING else field
