"""Small runs for tests: composed and checked like the command line's, trained in this process."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from jaxtyping import Float, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from sae_sweeps.config.check import checked
from sae_sweeps.config.history import moved
from sae_sweeps.config.options import RunConfig, TrainingOptions
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.pre_acts import PreActs
from sae_sweeps.interfaces import Architecture, AuxLoss, Resampling, Rows
from sae_sweeps.optimizer.adam import Adam
from sae_sweeps.record.identity import identity
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.schedule.linear import Linear
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.tracking.off import Off
from sae_sweeps.training.listener import Listener
from sae_sweeps.training.pack import load
from sae_sweeps.training.trainer import Trainer
from tests.support.places import CONF

SMALL = [
    "name=small",
    "tracking=off",
    "d_sae=64",
    "k=4",
    "stream.batch_tokens=512",
    "stream.chunk_tokens=1024",
    "stream.calibration_tokens=1024",
    "training.tokens=4096",
    "evaluation.tokens=1024",
    "evaluation.ce_tokens=256",
    "device=cpu",
]

PLAIN_L1: dict[str, Any] = {
    "coef_warmup_tokens": 0,
    "p": 1.0,
    "p_start_tokens": 0,
    "p_end_tokens": 1,
    "p_steps": 1,
}
"""An L1 penalty's further options where neither its coefficient nor its exponent moves."""


class Quiet:
    """A display that shows nothing."""

    def started(self, total_tokens: int, titles: list[str]) -> None: ...
    def advance(self, run: int, tokens: int) -> None: ...
    def resumed(self, run: int, tokens: int) -> None: ...
    def metrics(self, run: int, figures: dict[str, float]) -> None: ...
    def finished(self, run: int, status: str) -> None: ...
    def stage(self, text: str) -> None: ...


def small_run(folder: Path, *overrides: str) -> Run:
    """The run that the small config with `overrides` describes, in a folder of its own."""
    run = run_of(folder, *SMALL, *map(moved, overrides))
    return replace(run, overrides=list(overrides))


def run_of(folder: Path, *words: str) -> Run:
    """The run that the shipped config with these words describes, in a folder of its own."""
    chosen = [word for word in words if (CONF / word.lstrip("+~").partition("=")[0]).is_dir()]
    cfg = deepcopy(_composed(*chosen))
    values = OverridesParser.create().parse_overrides([w for w in words if w not in chosen])
    ConfigLoaderImpl._apply_overrides_to_config(values, cfg)  # pyright: ignore[reportPrivateUsage]
    config = RunConfig.of(checked(cfg))
    choices: dict[str, Any] = OmegaConf.to_container(cfg.hydra.runtime.choices)  # pyright: ignore
    name = identity(config)
    return Run(name, "small", folder / name, config, choices, list(words))


@cache
def _composed(*chosen: str) -> DictConfig:
    """The config of these option files, once for all runs that choose them: Hydra takes 0.1 s.

    Single values are put into a copy of it, with the function by which Hydra does the same.
    """
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(chosen), return_hydra_config=True)


def train(*runs: Run) -> list[Result | Exception]:
    """Train runs that share a stream."""
    return train_pack(runs, Quiet())


def train_pack(
    runs: Sequence[Run], display: Listener, tracking: Tracking | None = None
) -> list[Result | Exception]:
    """Load and train runs that share a stream; raises what is wrong with one before it begins."""
    pack = load(runs, [], display)
    for fault in pack.faults:
        raise fault
    return pack.train(tracking or Off())


def measure(*runs: Run) -> list[Result | Exception]:
    """Measure finished runs anew that share a stream."""
    return load([], runs, Quiet()).measure(Off())


ADAM = {"lr": 3e-3, "beta1": 0.9, "beta2": 0.999}


def trainer_of(
    sae: Architecture,
    aux_loss: AuxLoss,
    resampling: Resampling,
    training: TrainingOptions,
    warmup_tokens: int = 0,
    decay_tokens: int = 0,
    adam: Mapping[str, float] = MappingProxyType({}),
) -> Trainer:
    """A trainer of parts made by hand, with Adam and a linear schedule."""
    schedule = Linear(training.tokens, warmup_tokens=warmup_tokens, decay_tokens=decay_tokens)
    return Trainer(sae, aux_loss, resampling, partial(Adam, **{**ADAM, **adam}), schedule, training)


def pre_acts_of(values: Float[Tensor, "batch d_sae"], max_listed: float = 1.0) -> PreActs:
    """Pre-activations with these values: weights and an input whose product they are."""
    W_enc, (batch, d_sae) = values.detach().clone(), values.shape
    x, zeros = torch.eye(batch, dtype=values.dtype), values.new_zeros
    return PreActs(W_enc, zeros(batch), zeros(d_sae), x, x, max_listed, W_enc._version)


def affinities_of(values: Float[Tensor, "batch d_sae"]) -> Affinities:
    """What an allocator is given where these are the affinities."""
    return Affinities(pre_acts_of(values))


def every(rows: Rows) -> Int[Tensor, "rows seq"]:
    """All rows at once."""
    return rows[torch.arange(rows.shape[0])]
