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
"""A variable: this many processes in one folder begin to train together."""


@cache  # once a process
def meet(processes: int) -> None:
    """Wait for the others, which may start seconds apart on a busy machine."""
    deadline = time.monotonic() + 60
    Path(f"began-{os.getpid()}").touch()
    while len(list(Path().glob("began-*"))) < processes:
        assert time.monotonic() < deadline, f"{processes} processes did not begin within 60 s"
        time.sleep(0.01)


class Slow(TargetModel):
    """Random numbers that come no faster than activations of a large model."""

    has_loss = False
    d_in, tokens_per_row = 64, 256

    def __init__(self, data: Data, device: torch.device, *, seconds_per_row: float) -> None:
        self.device, self.seconds_per_row = device, seconds_per_row
        self.description = {"model_name": None, "hook_name": None}

    def row_count(self, split: Split) -> int:
        return 10_000 if split == "train" else 1_000

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        if split == "train":
            if PROCESSES in os.environ:
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
