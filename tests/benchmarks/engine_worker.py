"""What the contenders of the engine benchmark have in common; needs PyTorch and nothing of ours.

A contender is a process with an interpreter of its own. It is asked, one line of JSON on its
standard input at a time, for `steps`, and answers what they cost. Its training loop runs on as if
nothing were: where it asks for its next batch, it waits here.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DIRECTIONS, RANK = 2000, 64
DATA_SEED = 2**20
"""Not one of a run's: its first decoder would be the very directions."""
MEAN_ACTIVE = 20
BLOCK = 4096
"""Tokens made at a time."""


class Gate:
    """The head of a training loop: lets through the steps asked for, and tells what they cost."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a contender prints is no answer
        torch.set_num_threads(1)
        self._left, self._began, self._baseline = 0, (0.0, 0.0), 0.0

    def ready(self) -> None:
        """Data and libraries are loaded: memory is counted from here."""
        Path("/proc/self/clear_refs").write_text("5")
        self._baseline = memory("VmRSS") - memory("RssFile")

    def step(self) -> None:
        """Wait, before a step, until it is wanted; with nobody to want it the process ends."""
        if self._left == 0:
            if any(self._began):
                self._answer()
            line = sys.stdin.readline()
            if not line:
                os._exit(0)
            self._left = json.loads(line)["steps"]
            self._began = time.process_time(), time.monotonic()
        self._left -= 1

    def batches(self, source: Iterator[Tensor]) -> Iterator[Tensor]:
        """`source`, whose batches are computed as part of their step."""
        while True:
            self.step()
            yield next(source)

    def _answer(self) -> None:
        cpu, wall = time.process_time() - self._began[0], time.monotonic() - self._began[1]
        # Pages of files, libraries' code and mapped activations, are not what training needs.
        peak = memory("VmHWM") - memory("RssFile") - self._baseline
        answer = {"cpu_s": cpu, "wall_s": wall, "peak_mb": peak}
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def memory(entry: str) -> float:
    """An entry of this process' status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{entry}:")]
    return int(line.split()[1]) / 1024


def repeated(acts: Tensor, batch: int) -> Iterator[Tensor]:
    """Batches of activations, over and over."""
    while True:
        yield from (part for part in acts.split(batch) if len(part) == batch)


def saved(case: dict[str, Any]) -> Tensor:
    """The activations [tokens, d_in] that a case is about."""
    import numpy as np

    return torch.from_numpy(np.load(case["data"]))


def synthesise(tokens: int, d_in: int) -> Tensor:
    """Activations [tokens, d_in] much like a language model's, with E|x|^2 = d_in.

    Sparse sums of directions as frequent as Zipf's law says, with heavy-tailed magnitudes; noise of
    low rank; a mean.
    """
    draw = torch.Generator().manual_seed(DATA_SEED)
    directions = torch.randn(DIRECTIONS, d_in, generator=draw)
    directions /= directions.norm(dim=1, keepdim=True)
    frequency = 1 / torch.arange(1, DIRECTIONS + 1)
    frequency = (frequency * (MEAN_ACTIVE / frequency.sum())).clamp(max=0.5)
    noise = torch.randn(RANK, d_in, generator=draw) * (0.5 / RANK**0.5)
    mean = torch.randn(d_in, generator=draw) * (2 / d_in**0.5)
    found = torch.empty(tokens, d_in)
    for part in found.split(BLOCK):
        active = torch.rand(len(part), DIRECTIONS, generator=draw) < frequency
        magnitude = torch.randn(len(part), DIRECTIONS, generator=draw).mul(0.7).exp()
        torch.mm(magnitude * active, directions, out=part)
        part += torch.randn(len(part), RANK, generator=draw) @ noise + mean
    return found * (d_in / found.pow(2).sum(1).mean()).sqrt()
