"""How fast this machine is: a few steps of each kind of run, on made-up activations and tokens.

Nothing is written or fetched, and no text is read. The model's own passes are tried where its
weights are here; else their time follows from its size and the speed of a large product.
"""

import resource
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import fmean
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET, build
from sae_sweeps.engine import gemm
from sae_sweeps.engine.device import settle
from sae_sweeps.interfaces import Data, Rows, Split, Step, TargetModel
from sae_sweeps.planning.estimate import model_parameters
from sae_sweeps.planning.memory import of_pack, weight_bytes, width_of
from sae_sweeps.planning.roofline import OF_MODELS
from sae_sweeps.planning.told import told
from sae_sweeps.record.identity import pass_identity
from sae_sweeps.record.run import Run
from sae_sweeps.system import hugging_face
from sae_sweeps.system.files import digest
from sae_sweeps.training.evaluation import measure
from sae_sweeps.training.listener import Listener
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.pack import pick_device, workers
from sae_sweeps.training.trainer import Trainer, new_trainer

WARM_UP, STEPS, LIMIT_S = 3, 16, 1.0
"""Steps before the clock runs; those timed at most; and the time after which no more are."""
NEAR = 1.5
"""How many times k latents may fire for a step to be as it is later in training."""
ROWS = 64
"""Token rows of a try."""
OF_SPEED = ("architecture", "allocator", "aux_loss")
"""Groups on which the time of a step may depend."""


class Probe:
    """Measures once for each kind of run, on the device that runs would be trained on."""

    def __init__(
        self,
        runs: Sequence[Run],
        display: Listener,
        began: float,
        processes: int = 1,
        side_by_side: int | None = None,
        device: str = "",
    ) -> None:
        """Try what `runs` are made of.

        Args:
            began: when this process began to import what the launch would, by `time.monotonic`.
            processes: packs that are to share this machine's cores.
            side_by_side: runs of each that train at the same time; None: as cores allow.
            device: where to try; else where the runs are to be trained.
        """
        first = runs[0].config
        settle(first.deterministic)
        self._on = pick_device(device or first.device)
        torch.set_num_threads(first.threads)
        gemm.keep_memory()
        cores = workers(self._on, first.threads) // processes
        self.side_by_side = side_by_side or max(1, cores)
        self.device = "CPU" if self._on.type == "cpu" else "GPU"
        self.basis = f"from a few steps of each kind of run on this {self.device}"
        self._began = self._loaded = began
        with hugging_face.offline(), ThreadPoolExecutor(self.side_by_side) as pool:
            display.stage("trying the target model's pass")
            self._passes = self._of_passes(runs, pool)
            kinds = {_kind(run.config): run.config for run in runs if width_of(run.config)}
            display.stage(f"trying steps of {len(kinds)} kinds of runs")
            tried = pool.map(partial(_of_steps, self._on), kinds.values())
            self._steps = dict(zip(kinds, tried, strict=True))

    def memory_bytes(self, runs: Sequence[Run]) -> int | None:
        if self._on.type != "cpu":
            return of_pack(runs)
        return of_pack(runs, "cpu", self.process_bytes, self.side_by_side)

    def start_s(self, config: RunConfig) -> float:
        del config  # of several models' the last, which took as long as a process will
        return self._loaded - self._began

    def step_s(self, config: RunConfig, d_in: int) -> float:
        del d_in  # it is the one that was tried
        return self._steps[_kind(config)][0]

    def evaluation_s(self, config: RunConfig, d_in: int) -> float:
        del d_in
        both_modes, given = self._steps[_kind(config)][1], config.evaluation
        return (given.tokens + given.ce_tokens / 2) * both_modes

    def activation_s(self, config: RunConfig) -> float | None:
        found = self._passes[pass_identity(config)]
        return found and found[0]

    def prediction_s(self, config: RunConfig) -> float | None:
        found = self._passes[pass_identity(config)]
        return found and found[1]

    def _of_passes(
        self, runs: Sequence[Run], pool: ThreadPoolExecutor
    ) -> dict[str, tuple[float, float] | None]:
        """Seconds of each pass, at its deepest hook; sets the bytes that hold no model."""
        deepest = {pass_identity(run.config): run.config for run in sorted(runs, key=_depth)}
        found = {key: self._of_pass(config, pool) for key, config in deepest.items()}
        # One model at a time was there.
        loaded = max(map(weight_bytes, filter(_is_here, deepest.values())), default=0)
        self.process_bytes = resident_bytes() - loaded
        return found

    def _of_pass(self, config: RunConfig, pool: ThreadPoolExecutor) -> tuple[float, float] | None:
        """Seconds a token up to the hook and to the end, of one pass of several side by side."""
        if not _is_here(config):
            found = model_parameters(config)
            rate = OF_MODELS * product_rate(self._on)
            return found and (2 * found[0] / rate, 2 * found[1] / rate)
        target = _target(config, self._on)
        self._loaded = time.monotonic()
        rows = torch.arange(min(target.rows_at_once or ROWS, target.row_count("train")))
        tokens = len(rows) * target.tokens_per_row
        tasks: list[Callable[[], object]] = [partial(target.activations, "train", rows)]
        if target.has_loss:
            tasks.append(partial(target.spliced_losses, "train", rows, torch.clone))
        seconds = [self._beside_itself(task, pool) / tokens for task in tasks]
        return seconds[0], seconds[1] if target.has_loss else 0.0

    @torch.no_grad()
    def _beside_itself(self, task: Callable[[], object], pool: ThreadPoolExecutor) -> float:
        """Seconds of a task while as many of its kind run as do in training; the second time."""
        one = partial(_synchronised, task, self._on)

        def several() -> None:
            for future in [pool.submit(one) for _ in range(self.side_by_side)]:
                future.result()

        several()
        return timed(several)


@final
class MadeUp(Data):
    """Rows of random ids below a tokenizer's size, instead of text."""

    def __init__(self, *, context_tokens: int) -> None:
        self.context_tokens = context_tokens

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        del split
        known = tokenizer.vocab_size  # without tokens that were added, which a model may lack
        ids = np.random.default_rng(0).integers(known, size=(ROWS, self.context_tokens))
        return Rows(ids.astype(np.uint32))


def _target(config: RunConfig, device: torch.device) -> TargetModel:
    """The target model on made-up tokens, or as it is where it takes none."""
    node = config.nodes["data"]
    if "context_tokens" in node:
        made_up = f"{__name__}.{MadeUp.__name__}"
        node = {TARGET: made_up, "context_tokens": node["context_tokens"]}
    return build(config.nodes["target_model"], build(node), device)


def _is_here(config: RunConfig) -> bool:
    """Whether a target model's weights are here; one that does not tell is built as it is."""
    return told(config, "target_model", "is_here") is not False


def _depth(run: Run) -> int:
    """Parameters up to a run's hook."""
    return (model_parameters(run.config) or (0, 0))[0]


def _kind(config: RunConfig) -> str:
    """Hash what the time of a step may depend on."""
    nodes = {name: config.nodes[name] for name in OF_SPEED}
    nodes["optimizer"] = {TARGET: config.nodes["optimizer"][TARGET]}
    own = config.k, config.d_sae, config.engine, config.training.precision
    return digest([nodes, own, config.stream.batch_tokens, width_of(config)])


def _of_steps(device: torch.device, config: RunConfig) -> tuple[float, float]:
    """Seconds of a training step, and of a token when a finished SAE is measured."""
    width = width_of(config)
    assert width is not None
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(config.stream.batch_tokens, width, generator=generator).to(device)
    sae = new_sae(config, width, device)
    sae.initialise(generator, torch.zeros(width))
    trainer = new_trainer(config, sae.to(device))
    for _ in range(WARM_UP):
        trainer.step(x, wanted=False)
        _thin_out(trainer, x, config.k)
    step = partial(trainer.step, x, wanted=False)
    step_s = fmean(_repeated(partial(_synchronised, step, device)))
    zero, batch = torch.zeros_like(x[0]), len(x)
    seconds = 0.0
    for training in (False, True):
        one = partial(measure, sae.train(training), x, zero, batch)
        seconds += fmean(_repeated(partial(_synchronised, one, device)))
    return step_s, seconds / batch


@torch.no_grad()
def _thin_out(trainer: Trainer, x: Float[Tensor, "batch d_in"], k: float) -> None:
    """Lower the encoder's bias until about k latents fire, as a penalty has it later.

    Untrained, half of all latents may fire; a step is then as slow as it never is again.
    """
    step: Step = trainer.sae(x, trainer.dead)
    l0 = step.acts.l0().item()
    if l0 <= NEAR * k:
        return
    values = step.pre_acts.values.float().flatten()
    now, then = (values.kthvalue(max(1, len(values) - int(n * len(x)))).values for n in (l0, k))
    step.pre_acts.bias.sub_(then - now)


def _repeated(task: Callable[[], object]) -> list[float]:
    """Seconds of each of several times that a task is done.

    To be averaged: a task is slow now and then, and in training it will be.
    """
    seconds: list[float] = []
    while len(seconds) < STEPS and sum(seconds) < LIMIT_S:
        seconds.append(timed(task))
    return seconds


def _synchronised(task: Callable[[], object], device: torch.device) -> None:
    """Do a task, and wait until the device has done it, too."""
    task()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def timed(task: Callable[[], object]) -> float:
    """Seconds of a task."""
    start = time.perf_counter()
    task()
    return time.perf_counter() - start


def product_rate(device: torch.device, size: int = 1024) -> float:
    """FLOP/s of a large product, in the dtype that a model would be loaded in."""
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    left = torch.ones(size, size, dtype=dtype, device=device)
    with torch.no_grad(), gemm.faster(device):
        return 2 * size**3 / fmean(_repeated(partial(_synchronised, lambda: left @ left, device)))


def resident_bytes() -> int:
    """Bytes of memory that this process had at its largest."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
