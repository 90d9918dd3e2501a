"""W&B's own process, which does the writing and uploading, as far as its end concerns us."""

import importlib
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from types import TracebackType
from typing import Any


def is_gone(error: Exception) -> bool:
    """Tell whether it has died, of which W&B's exceptions say so or nothing."""
    return isinstance(error, ConnectionError) or is_dead()


def is_dead() -> bool:
    """Tell whether it was started and has ended."""
    process = _process()
    return process is not None and process.poll() is not None


def tear_down(kill: bool = False) -> None:
    """End it; what this raises where it has died says no more than that."""
    import wandb

    process = _process()
    if process is not None and kill:
        process.kill()
    with suppress(Exception, SystemExit):
        wandb.teardown()
    if process is not None:
        with suppress(subprocess.TimeoutExpired):  # it is no zombie then
            process.wait(1.0)


@cache  # once is enough
def hush() -> None:
    """Keep W&B's threads from printing tracebacks where its process is gone: that is told once."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, Exception) and _is_wandbs(args.exc_traceback)):
            before(args)

    threading.excepthook = hook


@cache
def leave_launch_out() -> None:
    """Keep runs from loading W&B Launch to see whether it has something for them.

    It can only have that where it was loaded before. Loading takes a second of CPU time where
    thousands of modules are loaded: pydantic goes through them all for each of its models.
    """
    run: Any = importlib.import_module("wandb.sdk.wandb_run").Run
    apply = getattr(run, "_detect_and_apply_job_inputs", None)

    def apply_where_loaded(self: Any) -> None:
        if "wandb.sdk.launch" in sys.modules and apply is not None:
            apply(self)

    run._detect_and_apply_job_inputs = apply_where_loaded


def _is_wandbs(trace: TracebackType | None) -> bool:
    """Whether an exception passed through a function of W&B's."""
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").startswith("wandb."):
            return True
        trace = trace.tb_next
    return False


def _process() -> Any:
    """Its `subprocess.Popen`, which only W&B's private parts know; None if it has not begun."""
    setup: Any = importlib.import_module("wandb.sdk.wandb_setup")
    try:
        return setup._singleton._connection._proc._process
    except AttributeError:
        return None
