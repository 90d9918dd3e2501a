"""Whether a command is only to tell what it would do."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """What `sae-sweeps plan` was asked for."""

    gpu: str | None = None
    """times are to be told for this one, see `gpus.GPUS`; None: for what the launch would use"""
    json: bool = False


asked: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""None: the command is to do it."""


def wish() -> Asked | None:
    """Give what is asked for.

    The one way for the application, which stock launchers send to jobs: with a context variable
    among its globals it could not be sent.
    """
    return asked.get()
