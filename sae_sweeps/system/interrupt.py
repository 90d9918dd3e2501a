"""A signal to stop, which long loops look at, so that what is won can be saved first."""

import signal
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR2")
    if hasattr(signal, name)
)
"""Ctrl-C, SLURM's end of grace, a closed terminal, and the warning that submitit asks SLURM for."""

LEAVING_LIMIT_S = 5.0
"""What a tracker gets to end its runs after a signal, once they are saved."""


class Interrupted(BaseException):
    """Training was told to stop; no `except Exception` takes it for a failure of a run."""


class _State:
    signum: int | None = None
    since = 0.0
    told = False
    """Whether `Interrupted` was raised: further signals must not disturb who leaves."""
    deferred = False


_state = _State()
_thread = threading.local()


@contextmanager
def listening() -> Generator[Mapping[int, Any], None, None]:
    """Turn the signals into `Interrupted` while the block runs; gives the handlers of before.

    It is raised once; a second Ctrl-C ends the process as it always did. What the process was
    started to ignore, as after `nohup` or by a script's `&`, stays ignored. For the main thread.
    """
    _forget()
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    heard = [signum for signum, handler in before.items() if handler != signal.SIG_IGN]
    try:
        for signum in heard:
            signal.signal(signum, _on_signal)
        yield before
    finally:
        for signum in heard:
            signal.signal(signum, before[signum])
        _forget()


def _forget() -> None:
    _state.signum, _state.told = None, False


def _on_signal(signum: int, _: FrameType | None) -> None:
    if _state.signum is not None and signum == signal.SIGINT:
        raise KeyboardInterrupt
    # SIGUSR2 asks for a requeue as well, so it is remembered before others.
    if _state.signum is None or signum == signal.SIGUSR2:
        _state.since = time.monotonic() if _state.signum is None else _state.since
        _state.signum = signum
    if not _state.deferred and not _state.told:
        _state.told = True
        raise Interrupted


@contextmanager
def deferred() -> Generator[None, None, None]:
    """While the block runs a signal does nothing but make `check` raise, in every thread."""
    _state.deferred = True
    try:
        yield
    finally:
        _state.deferred = False


@contextmanager
def postponed() -> Generator[None, None, None]:
    """Let this thread finish what must not be half done: `check` does nothing in the block."""
    _thread.postponed = True
    try:
        yield
    finally:
        _thread.postponed = False


def check() -> None:
    """Raise `Interrupted` if a signal came; loops over micro-batches call it in each round."""
    if _state.signum is not None and not getattr(_thread, "postponed", False):
        _state.told = True
        raise Interrupted


def received() -> tuple[int, float] | None:
    """Give the signal that came, and how many seconds ago the first one did."""
    if _state.signum is None:
        return None
    return _state.signum, time.monotonic() - _state.since
