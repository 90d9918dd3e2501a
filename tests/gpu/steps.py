"""A training step of any method on fake CUDA tensors, counted."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from sae_sweeps.allocator.feature_choice import FeatureChoice
from sae_sweeps.engine import columns, concerned, host, sparse
from sae_sweeps.engine.host import HostNumber
from sae_sweeps.engine.sparse import Pairs
from sae_sweeps.planning.gpus import GPUS
from sae_sweeps.planning.memory import of_run
from sae_sweeps.planning.roofline import step_s
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer

from .counting import Asked
from .fake_cuda import fake_cuda
from .runs import config_of
from .sizes import Size

GPU = torch.device("cuda:0")


@torch.library.custom_op("sae_sweeps_rig::sampled_products", mutates_args=())
def sampled_products(starts: Tensor, latents: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The products at pairs, whose sparse matrix PyTorch cannot fake."""
    raise NotImplementedError


@sampled_products.register_fake
def _(starts: Tensor, latents: Tensor, left: Tensor, right: Tensor) -> Tensor:
    exact = (torch.float32, torch.float64)
    assert starts.device == left.device and left.dtype == right.dtype, "mixed"
    assert left.dtype in exact, f"CUDA has no such product of {left.dtype}"
    return left.new_empty(len(latents))


def products(pairs: Pairs | None, left: Tensor, right: Tensor) -> Tensor:
    """`sparse.products`, fakeable."""
    if pairs is None:
        return sparse.matmul(left, right.T)
    return sampled_products(pairs.token_starts, pairs.latents, left, right)


class Told(HostNumber):
    """A number that the host is told; it asks the device for it all the same."""

    value = 0

    def get(self) -> int:
        return self.value


def fakeable(dead: int) -> None:
    """Replace what cannot run on fake tensors, for the rest of this process."""
    sparse.products = products
    host.HostNumber = concerned.HostNumber = Told
    Told.value = dead
    for name in ("__init__", "budgets", "_most"):
        setattr(FeatureChoice, name, on_the_host(getattr(FeatureChoice, name)))
    columns.grouped = on_the_host(columns.grouped)


def on_the_host(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose own tensors are real, since their numbers give the shapes of others."""

    def called(*args: Any, **options: Any) -> Any:
        with unset_fake_temporarily():
            return function(*args, **options)

    return called


def trainer_on(device: torch.device, size: Size, *words: str) -> Trainer:
    """The trainer of the run that `words` describe, on fake tensors."""
    config = config_of(size, *words)
    sae = new_sae(config, size.d_in, device)
    return new_trainer(config, sae.to(device))


def counted(size: Size, *words: str, wanted: bool = False) -> Asked:
    """What the second step asks for; in the first the optimiser's moments come to be."""
    with fake_cuda():
        trainer = trainer_on(GPU, size, *words)
        x = torch.randn(size.batch, size.d_in, device=GPU)
        with Asked():
            trainer.step(x, wanted=wanted)
        asked = Asked()
        with asked:
            trainer.step(x, wanted=wanted)
    return asked


def row(size: Size, words: list[str], wanted: bool = False) -> dict[str, Any]:
    """The figures of a step."""
    asked, config = counted(size, *words, wanted=wanted), config_of(size, *words)
    memory = of_run(config, size.d_in)
    return {
        "d_in": size.d_in,
        "d_sae": size.d_sae,
        "words": words,
        "operators": asked.operators.total(),
        "waits": asked.waits,
        "in_any_order": sorted(asked.in_any_order),
        "gpu_ms": asked.gpu_ms,
        "ms": asked.ms,
        "peak_bytes": asked.peak + 12 * size.parameters,
        "planned_bytes": memory.held + memory.step,
        "planned_ms": 1e3 * step_s(config, size.d_in, GPUS["h200"]),
        "dearest": dict(sorted(asked.us.items(), key=lambda item: -item[1])[:8]),
        "most": dict(asked.operators.most_common(12)),
    }
