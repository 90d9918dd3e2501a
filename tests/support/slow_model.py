"""A target model that takes its time: a run that a test disturbs lasts, and costs no processor."""

import os
import time
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.interfaces import Data, Splice, SplicedLosses, Split, TargetModel

SLOW_TARGET = (f"--config-dir={Path(__file__).parent / 'slow'}", "target_model=slow")
"""Options of a run that lasts 0.8 s for every 10,000 tokens, and computes for little of it."""

PROCESSES = "SLOW_PROCESSES"
"""A variable: this many processes in one folder go on together after `MEETING_ROWS`."""
MEETING_ROWS = 32
"""By then each has trained for a while and has by far not ended."""


def in_training(home: Path) -> int:
    """How many processes started in a folder have come that far."""
    return len(list(home.glob("trains-*")))


@cache  # once a process
def meet(processes: int) -> None:
    """Wait for the others, which may be seconds behind on a busy machine."""
    deadline = time.monotonic() + 100
    Path(f"trains-{os.getpid()}").touch()
    while in_training(Path()) < processes:
        assert time.monotonic() < deadline, f"{processes} processes did not meet within 100 s"
        time.sleep(0.01)


class Slow(TargetModel):
    """Random numbers that come no faster than activations of a large model."""

    has_loss = False
    d_in, tokens_per_row = 64, 256

    def __init__(self, data: Data, device: torch.device, *, seconds_per_row: float) -> None:
        self.device, self.seconds_per_row = device, seconds_per_row
        self.description = {"model_name": None, "hook_name": None}
        self.rows_given = 0

    def row_count(self, split: Split) -> int:
        return 10_000 if split == "train" else 1_000

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        if split == "train":
            self.rows_given += len(rows)
            if PROCESSES in os.environ and self.rows_given > MEETING_ROWS:
                meet(int(os.environ[PROCESSES]))
            # In this time a test disturbs the run, and other tests have the processor.
            time.sleep(self.seconds_per_row * len(rows))
        numbers = [2 * row + (split == "train") for row in rows.tolist()]
        return torch.cat([self._row(number) for number in numbers]).to(self.device)

    def _row(self, seed: int) -> Float[Tensor, "tokens d_in"]:
        random = torch.Generator().manual_seed(seed)
        return torch.randn(self.tokens_per_row, self.d_in, generator=random)

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        raise RuntimeError("random numbers have no model to run")
