"""What a step of ours is made of: python -m tests.benchmarks.engine_profile PART CASE.

Prints JSON. `breakdown`: milliseconds by kind of work, each counted once, though products are made
within the selection, piece by piece; and the whole product alone, as it is fastest; `overhead`:
what a run does beside mathematics; `ops`: operators and synchronisations of a step.
"""

import json
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_sweeps.engine import gemm, sparse
from sae_sweeps.measure.none import NoMeasurement
from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.training import trainer as training
from sae_sweeps.training.member import Member
from sae_sweeps.training.trainer import Trainer, squared_error, update
from tests.benchmarks.engine_ours import runs_of, tracking_of
from tests.benchmarks.engine_worker import saved
from tests.support.small import Quiet

ROUNDS = 7
WARM_STEPS = 4
SYNCHRONISING = {"_local_scalar_dense", "nonzero", "unique", "_unique2", "masked_select"}
SPARSE_PRODUCTS = ("times", "transposed_times", "products", "per_latent")


def member_of(case: Mapping[str, Any], method: str) -> Member:
    """A run, opened: the first `advance` trains."""
    home = Path(case["home"]) / method
    (run,) = runs_of({**case, "methods": [method]}, home)
    with ThreadPoolExecutor(1) as pool:
        harvest = Harvest([run.config], torch.device("cpu"), pool)
    member = Member(0, run, harvest.stream(run.config), NoMeasurement(), Quiet())
    member.open(tracking_of(dict(case), home))
    return member


class Clock:
    """CPU seconds by kind of work; what is inside of something else is not counted there."""

    def __init__(self) -> None:
        self.spent = defaultdict[str, float](float)
        self._stack = ["rest"]
        self._last = time.process_time()

    def _turn(self) -> None:
        now = time.process_time()
        self.spent[self._stack[-1]] += now - self._last
        self._last = now

    @contextmanager
    def counting(self, kind: str) -> Generator[None]:
        """Count what happens within as `kind`."""
        self._turn()
        self._stack.append(kind)
        try:
            yield
        finally:
            self._turn()
            self._stack.pop()

    def counted(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, whose time counts as `kind`."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.counting(kind):
                return function(*args, **kwargs)

        return timed


def breakdown(case: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By method, milliseconds of CPU of a step's parts."""
    return {method: _parts(case, method) for method in case["methods"]}


def _parts(case: dict[str, Any], method: str) -> dict[str, float]:
    member = member_of(case, method)
    trainer, x = member.trainer, saved(case)[: case["batch"]]
    sae = trainer.sae
    bias = torch.zeros(case["d_sae"], 1)
    found: dict[str, list[float]] = {}
    for turn in range(WARM_STEPS + ROUNDS):
        clock = Clock()
        with ExitStack() as stack:
            for name in SPARSE_PRODUCTS:
                function = clock.counted("sparse products", getattr(sparse, name))
                stack.enter_context(patch.object(sparse, name, function))
            for owner, name, kind in (
                (gemm, "product", "encoder product"),
                (sae.allocator, "forward", "selection"),
                (training, "update", "clip, Adam, projection"),
                (trainer, "_observe", "counters"),
            ):
                function = clock.counted(kind, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, function))
            with clock.counting("rest"):
                trainer.step(x, wanted=False)
        began = time.process_time()
        with torch.no_grad():
            gemm.product(sae.W_enc.T, x - sae.b_dec, bias)
        clock.spent["the product alone"] = time.process_time() - began
        if turn >= WARM_STEPS:
            for kind, seconds in clock.spent.items():
                found.setdefault(kind, []).append(1e3 * seconds)
    member.tracked.finish(None)
    member.close_files()
    return {kind: median(spent) for kind, spent in found.items()}


def mathematics(trainer: Trainer, x: Tensor) -> None:
    """What a step cannot do without."""
    lr = trainer.optimizer.lr * trainer.schedule.factor(trainer.tokens, len(x))
    step = trainer.sae(x, trainer.dead)
    loss = squared_error(step) + trainer.sae.penalty(step) + trainer.aux_loss(step)
    trainer.optimizer.zero_grad()
    loss.backward()
    update(trainer.sae, trainer.optimizer, trainer.given.gradient_clip_norm, lr)


def overhead(case: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By method, CPU of `Member.advance` over that of its mathematics, and of a checkpoint."""
    return {method: _overhead(case, method) for method in case["methods"]}


def _overhead(case: dict[str, Any], method: str) -> dict[str, float]:
    member = member_of(case, method)
    chunk = saved(case)[: case["batch"] * case["chunk_batches"]]
    ratios: list[float] = []
    bare: list[float] = []
    for turn in range(1 + ROUNDS):
        began = time.process_time()
        member.advance(chunk, member.trainer.tokens)
        between = time.process_time()
        for x in chunk.split(case["batch"]):
            mathematics(member.trainer, x)
        after = time.process_time()
        if turn:
            ratios.append((between - began) / (after - between))
            bare.append((after - between) / case["chunk_batches"])
    began = time.process_time(), time.monotonic()
    member.saving.now(member._checkpoint())  # pyright: ignore[reportPrivateUsage]
    saving = time.process_time() - began[0], time.monotonic() - began[1]
    member.tracked.finish(None)
    member.close_files()
    return {
        "beside_mathematics": median(ratios) - 1,
        "mathematics_ms": 1e3 * median(bare),
        "checkpoint_cpu_s": saving[0],
        "checkpoint_wall_s": saving[1],
        "checkpoint_share": saving[0] / (60 * case["checkpoint_minutes"]),
    }


class Counting(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def ops(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By method, operators of a step between two rows of metrics."""
    found: dict[str, dict[str, Any]] = {}
    for method in case["methods"]:
        trainer, x = member_of(case, method).trainer, saved(case)[: case["batch"]]
        for _ in range(WARM_STEPS):
            trainer.step(x, wanted=False)
        with Counting() as counting:
            trainer.step(x, wanted=False)
        waits = {name: n for name, n in counting.seen.items() if name in SYNCHRONISING}
        found[method] = {"ops": counting.seen.total(), "synchronisations": waits}
    return found


def machine(_: dict[str, Any]) -> dict[str, Any]:
    """What computed, in words that name no machine."""
    config = [line.strip(" -") for line in torch.__config__.show().splitlines()]
    return {
        "cpu": torch.cpu.get_capabilities().get("cpu_name", "CPU"),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "libraries": [line for line in config if "Math Kernel" in line or "MKL-DNN" in line],
        "gemm": gemm.backend(torch.device("cpu")),
    }


PARTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    function.__name__: function for function in (breakdown, overhead, ops, machine)
}


def answer(parts: Mapping[str, Callable[[dict[str, Any]], Any]]) -> None:
    """Measure the part that the command line names, and print its figures."""
    printed = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # W&B prints
    torch.set_num_threads(1)
    name, case = sys.argv[1:]
    json.dump(parts[name](json.loads(case)), printed)


if __name__ == "__main__":
    answer(PARTS)
