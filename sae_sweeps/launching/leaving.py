"""How a job ends after a signal, so that SLURM starts it again where it should."""

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from sae_sweeps.system import cluster, interrupt

logger = logging.getLogger("sae_sweeps.launching.leaving")


def leave(before: Mapping[int, Any]) -> NoReturn:
    """End the process after a signal, once everything is saved.

    SLURM starts a job that it preempts without grace, requeues or loses again by itself. It does
    not where it only warned the job (SIGUSR2), or gave it a time of grace (SIGTERM, while the job
    counts as running): then submitit's handler asks for it.

    Args:
        before: the handlers that `interrupt.listening` replaced, submitit's among them.
    """
    signum, seconds = interrupt.received() or (signal.SIGTERM, 0.0)
    logger.info("left %.2f s after %s", seconds, signal.Signals(signum).name)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which may follow the warning
    requeue = before.get(signal.SIGUSR2)
    if callable(requeue) and (signum == signal.SIGUSR2 or (signum == signal.SIGTERM and _runs())):
        try:
            requeue(signal.SIGUSR2, None)  # asks SLURM to start the job again, and exits
        except (subprocess.SubprocessError, OSError):
            logger.info("SLURM starts this job again by itself")
    # SystemExit, not an error: submitit takes it for no result, and SLURM's word counts.
    sys.exit(128 + signum)


def job_id() -> str | None:
    """Give the SLURM job that this process is, `12` or `12_3`."""
    names = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")
    array = "_".join(os.environ[name] for name in names if name in os.environ)
    return array or os.environ.get("SLURM_JOB_ID")


def _runs() -> bool:
    """Say whether SLURM still counts this job as running, so does not end it itself."""
    number = job_id()
    try:
        found = cluster.jobs([number]) if number else {}
    except cluster.ClusterError:
        return False
    return any(job.state == "RUNNING" for job in found.values())
