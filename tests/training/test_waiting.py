"""No training step makes the host wait for an accelerator, except to log.

On the meta device tensors have shapes and no values: whatever would need a value on the host, a
number of pairs or a comparison, cannot run there. Such a tensor is not on the CPU, so that a step
goes the way of accelerators. What CUDA alone does is looked at in tests/gpu.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor

from sae_sweeps.engine import sparse
from sae_sweeps.engine.host import HostNumber
from sae_sweeps.engine.listing import MAX_LISTED
from sae_sweeps.engine.sparse import Pairs
from sae_sweeps.interfaces import Progress, Step
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer
from tests.support.places import CONF
from tests.support.small import small_run

METHODS = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))
ALLOCATORS = sorted(path.stem for path in (CONF / "allocator").glob("*.yaml"))
AUX_LOSSES = sorted(path.stem for path in (CONF / "aux_loss").glob("*.yaml"))
RESAMPLINGS = sorted(path.stem for path in (CONF / "resampling").glob("*.yaml"))
D_IN, BATCH = 16, 64


@pytest.fixture(autouse=True)
def no_kernels_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no meta kernel, or is refused there, is left out; nothing of it waits."""
    products = sparse.products

    def shaped(pairs: Pairs | None, left: Tensor, right: Tensor) -> Tensor:
        return products(None, left, right) if pairs is None else left.new_empty(len(pairs.flat))

    monkeypatch.setattr(sparse, "products", shaped)
    # Asked for before it is needed, so not waited for: no latent is concerned.
    monkeypatch.setattr(HostNumber, "get", Mock(return_value=0))
    monkeypatch.setattr("sae_sweeps.optimizer.adam.adam", Mock())
    off = partial(torch.autocast, "cpu", enabled=False)
    monkeypatch.setattr(torch, "autocast", Mock(side_effect=iter(off, None)))
    monkeypatch.setattr(torch, "is_autocast_enabled", Mock(return_value=False))


def trainer_of(max_listed: float, *words: str) -> Trainer:
    config = small_run(Path(), "d_sae=256", "k=4", "training.tokens=100000", *words).config
    sae = new_sae(config, D_IN).to("meta")
    sae.max_listed = max_listed
    return new_trainer(config, sae)


def step(trainer: Trainer) -> None:
    trainer.step(torch.empty(BATCH, D_IN, device="meta"), wanted=False)


@pytest.mark.parametrize("max_listed", [0.0, MAX_LISTED])
@pytest.mark.parametrize("aux_loss", AUX_LOSSES)
@pytest.mark.parametrize("method", METHODS)
def test_no_method_waits(method: str, aux_loss: str, max_listed: float) -> None:
    trainer = trainer_of(max_listed, f"method={method}", f"aux_loss={aux_loss}")
    for _ in range(2):
        step(trainer)


@pytest.mark.parametrize("max_listed", [0.0, MAX_LISTED])
@pytest.mark.parametrize("allocator", ALLOCATORS)
@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
def test_no_allocator_waits(architecture: str, allocator: str, max_listed: float) -> None:
    trainer = trainer_of(max_listed, f"architecture={architecture}", f"allocator={allocator}")
    for _ in range(2):
        step(trainer)


@pytest.mark.parametrize("resampling", RESAMPLINGS)
def test_no_resampling_waits(resampling: str) -> None:
    trainer = trainer_of(0.0, f"resampling={resampling}")
    for _ in range(2):
        step(trainer)


WANTED: dict[str, Callable[[Tensor], object]] = {
    "item": lambda recon: recon.sum().item(),
    "nonzero": lambda recon: recon.nonzero(),
    "bool": lambda recon: bool((recon > 0).any()),
    "to the CPU": lambda recon: recon.cpu(),
}


@pytest.mark.parametrize("wanted", WANTED)
def test_a_value_wanted_would_be_noticed(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(0.0)

    def observe(step: Step, progress: Progress) -> None:
        del progress
        WANTED[wanted](step.recon)

    monkeypatch.setattr(trainer.aux_loss, "observe", observe)
    with pytest.raises(RuntimeError):  # or its subclass NotImplementedError, by the operation
        step(trainer)
