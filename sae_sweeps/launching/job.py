"""The process that a frozen pack gets: a SLURM task through submitit, or a worker on this machine.

`python -m sae_sweeps.launching.job packs/1-0.json` is the latter.
"""

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

from sae_sweeps.config.signature import build
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.leaving import job_id, leave
from sae_sweeps.launching.out import complain
from sae_sweeps.launching.packs import Frozen, thaw
from sae_sweeps.launching.progress import Lines
from sae_sweeps.launching.summary import renew_report
from sae_sweeps.launching.work import record, work
from sae_sweeps.record import manifest
from sae_sweeps.record.folder import PackFiles, SweepFolder
from sae_sweeps.record.inspection import inspect
from sae_sweeps.record.run import Run
from sae_sweeps.system import files, interrupt

logger = logging.getLogger("sae_sweeps.launching.job")  # also when it is __main__

RESTARTS_WITHOUT_PROGRESS = 3
LINE_EVERY_S = 60.0
ATTACHED = "attached"
"""The word after the pack's file with which a process leaves as soon as its stdin ends."""
REFUSED, FAILED = 1, 2
REPORT_LIMIT_S = 60.0
"""What a pack that is done waits for others to write their report."""


class PackJob:
    """What submitit calls in a task; everything that it needs lies in the pack's file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self) -> None:
        """Train the pack, and exit with 2 if a run failed."""
        try:
            inspect(PackFiles(self.path).sweep.path)
        except ConfigError as error:
            complain(str(error))
            sys.exit(REFUSED)
        if failed := run_pack(self.path):
            logger.error("%d runs failed", failed)
            sys.exit(FAILED)

    def checkpoint(self) -> Any:
        """Give submitit what to call after a requeue: the same, since all state is on disk."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


class LoggedLines(Lines):
    """Progress as lines of the pack's log."""

    def say(self, text: str) -> None:
        """Log a line."""
        logger.info("%s", text)


def run_pack(path: Path) -> int:
    """Do what is left of a pack; returns how many of its runs failed.

    A signal saves the runs and ends the process, by way of submitit's handler where that asks
    SLURM to start the job again.
    """
    with _logging(PackFiles(path).log), interrupt.listening() as before:
        try:
            return _run(thaw(path))
        except interrupt.Interrupted:
            leave(before)
        except ConfigError as error:
            logger.error("%s", error)
            sys.exit(REFUSED)
        except BaseException:
            logger.exception("the pack ends")
            raise


def _run(pack: Frozen) -> int:
    logger.info("pack %s on %s%s", pack.files.name, socket.gethostname(), _job())
    _warn_of_edits(pack)
    _warn_of_idle_gpu(pack)
    ahead = [run for run in pack.runs if run.files.result_of(run.config) is None]
    if _stalled(pack):
        text = f"its pack was started {RESTARTS_WITHOUT_PROGRESS} times more without any progress"
        error = RuntimeError(f"{text}: see packs/{pack.files.log.name}")
        return len([record(run, error) for run in ahead])
    tracking = build(pack.runs[0].config.nodes["tracking"])
    tokens = sum(run.config.total_tokens for run in ahead)
    with LoggedLines(len(ahead), tokens, LINE_EVERY_S) as display:
        try:
            outcomes = work(pack.runs, tracking, display)
            failed = sum(isinstance(outcome, Exception) for outcome in outcomes.values())
            logger.info("%d of %d runs are finished", len(outcomes) - failed, len(outcomes))
            _report(pack, tracking)
        except interrupt.Interrupted:
            tracking.close(interrupt.LEAVING_LIMIT_S)
            raise
    return failed


def _job() -> str:
    number = job_id()
    again = os.environ.get("SLURM_RESTART_COUNT", "0")
    return f", job {number}, {again} times requeued" if number else ""


def _warn_of_edits(pack: Frozen) -> None:
    now = manifest.git_state()
    if now != pack.git and now and pack.git:
        before, after = pack.git["commit"][:9], now["commit"][:9]
        what = f"commit {before}, now {after}" if before != after else "uncommitted changes"
        logger.warning("the code was edited since this pack was submitted: %s", what)


def _warn_of_idle_gpu(pack: Frozen) -> None:
    """Else a torch that was built without CUDA would waste what the job was given, unseen."""
    if pack.runs[0].config.device == "auto" and os.environ.get("SLURM_JOB_GPUS"):
        import torch

        if not torch.cuda.is_available():
            text = "SLURM gave this job a GPU, but torch %s finds none: it trains on the CPU"
            logger.warning(text, torch.__version__)


def _stalled(pack: Frozen) -> bool:
    """Write down that the pack starts, and say whether that has become of no use."""
    path = pack.files.starts
    try:
        starts: list[dict[str, Any]] = [*map(dict, json.loads(path.read_text(encoding="utf-8")))]
    except (OSError, ValueError, TypeError):
        starts = []
    progress = [_progress(run) for run in pack.runs]
    in_vain = 0
    while in_vain < len(starts) and starts[-1 - in_vain].get("progress") == progress:
        in_vain += 1
    now = {"time": time.time(), "host": socket.gethostname(), "progress": progress}
    with suppress(OSError):  # training tells better what is wrong with the disk
        files.write_json(path, [*starts, now])
    return in_vain >= RESTARTS_WITHOUT_PROGRESS


def _progress(run: Run) -> int:
    """Give the tokens of a run's last checkpoint; one more than all if it is finished."""
    if run.files.result_of(run.config) is not None:
        return run.config.total_tokens + 1
    return run.files.saved_tokens


def _report(pack: Frozen, tracking: Any) -> None:
    """Renew the sweep's report, and its run at the tracker, one pack after the other."""
    from filelock import FileLock, Timeout

    tracking.close()  # so that others wait for this pack's report only
    sweep = pack.files.sweep
    try:
        with FileLock(sweep.report_lock, timeout=REPORT_LIMIT_S):
            found = _results(sweep)
            if found != _reported(sweep):  # many packs may end at once, and one report is enough
                _draw(sweep.path, tracking)
                tracking.close()
                files.write_json(sweep.reported, found)
    except (Timeout, OSError) as error:
        logger.warning("the report is not written: %s", error)


def _draw(folder: Path, tracking: Any) -> None:
    if ATTACHED in sys.argv:  # the process that launched this one tells the user in the end
        renew_report(folder, tracking)
    else:
        from sae_sweeps.pareto.report import report

        report(folder, tracking)


def _results(sweep: SweepFolder) -> dict[str, int]:
    """When each finished run was last measured, by the run's name."""
    done = [run for run in sweep.runs if run.finished.exists()]
    return {run.path.name: run.finished.stat().st_mtime_ns for run in done}


def _reported(sweep: SweepFolder) -> dict[str, int]:
    """What the last report told."""
    try:
        return json.loads(sweep.reported.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


@contextmanager
def _logging(path: Path) -> Generator[None, None, None]:
    """Append what the package says to the pack's log."""
    package = logging.getLogger("sae_sweeps")
    handler = files.LogFile(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package.setLevel(logging.INFO)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        handler.close()


def leave_with_parent() -> None:
    """Tell this process to save and leave when the one that launched it is gone."""
    os.read(sys.stdin.fileno(), 1)  # comes back when the other end of the pipe is closed
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    if ATTACHED in sys.argv:
        Thread(target=leave_with_parent, daemon=True).start()
    PackJob(Path(sys.argv[1]))()
