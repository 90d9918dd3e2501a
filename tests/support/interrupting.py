"""A display that ends training in the middle."""

from tests.support.small import Quiet

OFTEN = "checkpoint_minutes=0"


class Interrupted(BaseException):
    """What no `except Exception` catches, as a killed process."""


class Interrupting(Quiet):
    """Interrupts a run of the pack after so many batches."""

    def __init__(self, run: int, batches: int) -> None:
        self.run, self.left = run, batches

    def advance(self, run: int, tokens: int) -> None:
        if run == self.run:
            self.left -= 1
            if self.left == 0:
                raise Interrupted
