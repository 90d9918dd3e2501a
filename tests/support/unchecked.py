"""Long trainings without the checks of shapes and types, which the same code passes elsewhere."""

from collections.abc import Generator
from contextlib import contextmanager

import jaxtyping


@contextmanager
def unchecked() -> Generator[None]:
    """Call annotated functions as they are, as users do.

    Even to see that a call was found good before makes a small step cost 1.4 times as much: for
    tests of what many steps lead to, where others take single ones.
    """
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)
