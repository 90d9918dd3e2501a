"""Where a part measures, how it measures there, and how it tells what it found."""

import gc
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from tests.gpu.sizes import NAMES, SIZES, TOY, Size

TAIL = 1_200
"""Characters of a traceback that are told."""
WARM = 3
"""Calls before a measurement: kernels are loaded, memory is taken."""
SPENT_S = 0.4
"""What a measurement takes, about."""
DIRECTIONS, COMMON, NOISE = 2_000, 10, 0.3
"""Of which batches are made up; about how many are common; what is added."""
COMMONEST = 0.05
"""Share of tokens that the commonest direction is in; of others as Zipf's law has it."""
FEWEST, MOST = 5, 50
"""Calls that are measured."""


class Place:
    """A device, and the stream that figures are printed to."""

    def __init__(self, rehearsal: bool, out: TextIO) -> None:
        self.rehearsal, self._out = rehearsal, out
        self.device = torch.device("cpu" if rehearsal else "cuda")

    @property
    def sizes(self) -> dict[str, Size]:
        """By name; in a rehearsal they are toys."""
        return dict(zip(NAMES, TOY if self.rehearsal else SIZES, strict=True))

    def tell(self, **figures: Any) -> None:
        """Print a row of figures at once: a part may be ended at any time."""
        self._out.write(json.dumps(figures) + "\n")
        self._out.flush()

    def batch(self, size: Size, seed: int = 0) -> Tensor:
        """Sparse sums of directions of which some are common, as our streams scale them."""
        draw = torch.Generator(self.device).manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=draw, device=self.device)

        ranks = torch.arange(COMMON, DIRECTIONS + COMMON, device=self.device)
        drawn = torch.rand(size.batch, DIRECTIONS, generator=draw, device=self.device)
        active = (drawn < COMMONEST * COMMON / ranks).float()
        x = active @ normal(DIRECTIONS, size.d_in) + NOISE * normal(size.batch, size.d_in)
        return x / x.pow(2).sum(1).mean().sqrt()

    @contextmanager
    def trial(self, **names: Any) -> Generator[None]:
        """One of several measurements: what it raises is told, and the others go on."""
        try:
            yield
        except Exception:  # whatever it is, it is what was found
            self.tell(**names, error=traceback.format_exc()[-TAIL:])

    @contextmanager
    def cell(self, **names: Any) -> Generator[None]:
        """Likewise, one that begins with the memory that the last one had."""
        with self.trial(**names):
            yield
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def settle(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object]) -> float:
        """The median time of a call, by the device's own clock where it has one.

        Calls are queued one behind the other: where the host takes longer than the device, the time
        is the host's.
        """
        for _ in range(WARM):
            work()
        one_s = self._seconds(work, 1)[0]
        count = 2 if self.rehearsal else int(min(max(SPENT_S / one_s, FEWEST), MOST))
        return 1e3 * statistics.median(self._seconds(work, count))

    def _seconds(self, work: Callable[[], object], count: int) -> list[float]:
        self.settle()
        marks = [self._mark()]
        for _ in range(count):
            work()
            marks.append(self._mark())
        self.settle()
        return [_between(*pair) for pair in pairwise(marks)]

    def _mark(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def host_milliseconds(self, work: Callable[[], object]) -> float:
        """The median time that the host takes to queue a call for a device that is idle."""
        times = list[float]()
        for _ in range(FEWEST):
            self.settle()
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        self.settle()
        return 1e3 * statistics.median(times)


def _between(began: Any, ended: Any) -> float:
    if isinstance(began, float):
        return max(ended - began, 1e-9)
    return max(began.elapsed_time(ended) / 1e3, 1e-9)


class Kernels(NamedTuple):
    """What a device did in a call."""

    ms: float
    """The kernels' own time, without gaps."""
    launched: int
    dearest: dict[str, float]
    """Names and ms of those that took most."""


def kernels(place: Place, work: Callable[[], object], calls: int = 2, named: int = 6) -> Kernels:
    """What the device does in a call, by PyTorch's profiler; on a CPU, operators."""
    on_cuda = place.device.type == "cuda"
    place.settle()
    with profile(activities=[ProfilerActivity.CUDA if on_cuda else ProfilerActivity.CPU]) as seen:
        for _ in range(calls):
            work()
        place.settle()
    field = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    rows = [(getattr(row, field) / 1e3 / calls, row.count, row.key) for row in seen.key_averages()]
    # Calls of the driver's are told of as well, which take the device no time.
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    dearest = {key[:80]: round(ms, 4) for ms, _, key in rows[:named]}
    return Kernels(sum(ms for ms, *_ in rows), sum(row[1] for row in rows) // calls, dearest)


def main(measure: Callable[[Place], None]) -> None:
    """Run a part, `--rehearse` or for good; what others print does not come between its rows."""
    words = sys.argv[1:]
    rehearsal = "--rehearse" in words
    if not rehearsal and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no CUDA device: only --rehearse does without.")
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    torch.manual_seed(0)
    if rehearsal:
        torch.set_num_threads(1)  # more would wait for each other on a busy machine
    measure(Place(rehearsal, own))
