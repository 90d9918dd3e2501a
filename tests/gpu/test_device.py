"""What CUDA computes otherwise than a CPU, computed on a CPU, is the same."""

import copy
import itertools
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from sae_sweeps.architecture.matryoshka import prefix_sums
from sae_sweeps.engine.acts import SparseActs
from sae_sweeps.engine.rows import distinct_rows
from sae_sweeps.engine.sparse import Pairs, per_latent
from sae_sweeps.optimizer.adam import Adam
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer, projected
from tests.support.small import small_run

from .counting import Call, adds_in_any_order
from .emulated import LENGTH, METHODS, compared
from .variants import combinations

as_on_cuda = patch("sae_sweeps.engine.device.has_fused_kernels", return_value=True)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (300, 64), (257, 513)])
def test_the_kernel_projects(shape: tuple[int, int]) -> None:
    rows = drawn(*shape, seed=1)
    rows /= rows.norm(dim=1, keepdim=True)
    grads = drawn(*shape)
    wanted = grads.double() - (grads.double() * rows).sum(1, keepdim=True) * rows.double()
    with as_on_cuda:
        found = projected(grads.clone(), nn.Parameter(rows))
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(projected(grads.clone(), rows), found, rtol=1e-5, atol=1e-5)


def test_a_latent_s_sum_is_made_in_one_order() -> None:
    """The densest latent has most pairs, some have none; integers are exact in any order."""
    chosen = drawn(200, 50).sigmoid() < torch.linspace(0, 1, 50)
    pairs = Pairs((200, 50), chosen.flatten().nonzero().squeeze(1))
    values = drawn(len(pairs.flat))
    wanted = per_latent(pairs, values.double(), 50)
    with as_on_cuda, patch("torch.Tensor.index_add") as unordered:
        found = per_latent(pairs, values, 50)
        assert not unordered.called
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    counts = chosen.sum(0)
    with as_on_cuda:
        assert per_latent(pairs, torch.ones_like(values, dtype=torch.bool), 50).equal(counts)


def test_a_latent_s_number_at_its_pairs_is_differentiated_in_one_order() -> None:
    """As `index_select`, whose gradient CUDA adds as threads come."""
    chosen = drawn(200, 50).sigmoid() < torch.linspace(0, 1, 50)
    pairs = Pairs((200, 50), chosen.flatten().nonzero().squeeze(1))
    weights, vector = drawn(len(pairs.flat)), drawn(50).requires_grad_()
    [wanted] = torch.autograd.grad(vector[pairs.latents] @ weights, vector)
    with as_on_cuda, patch("torch.Tensor.index_add") as unordered:
        acts = SparseActs(pairs, weights)
        [found] = torch.autograd.grad(acts.spread(vector) @ weights, vector)
        assert not unordered.called
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 0), (7, 2, 5)])
def test_distinct_rows_are_those_and_their_gradient_goes_back(shape: tuple[int, ...]) -> None:
    rows, places = drawn(*shape).requires_grad_(), torch.tensor([4, 0, 6])
    weights = drawn(3, *shape[1:], seed=1)
    found = distinct_rows(rows, places)
    assert found.equal(rows[places])
    [grad] = torch.autograd.grad((found * weights).sum(), rows)
    [wanted] = torch.autograd.grad((rows[places] * weights).sum(), rows)
    assert grad.equal(wanted)


def test_sums_of_prefixes_are_differentiated_alike() -> None:
    parts = drawn(6, 4, 3).requires_grad_()
    weights = drawn(6, 4, 3, seed=1)
    own = prefix_sums(parts)
    with as_on_cuda, patch("torch.Tensor.cumsum") as unordered:
        other = prefix_sums(parts)
        assert not unordered.called
    torch.testing.assert_close(own, other)
    grads = [torch.autograd.grad((sums * weights).sum(), parts)[0] for sums in (own, other)]
    torch.testing.assert_close(*grads)
    torch.testing.assert_close(own[:, -1], parts.sum(1))


@pytest.mark.parametrize(
    ("name", "args", "options", "expected"),
    [
        ("index_add", (), {}, True),
        ("index_add_", (), {}, True),
        ("index_select", (), {}, False),
        ("index_put", (0, 1, 2), {}, False),
        ("index_put", (0, 1, 2, True), {}, True),
        ("index_put_", (0, 1, 2), {"accumulate": True}, True),
        ("scatter_reduce", (0, 0, 1, 2, "amin"), {}, False),
        ("scatter_reduce", (0, 0, 1, 2, "sum"), {}, True),
    ],
)
def test_what_adds_in_any_order_is_known(
    name: str, args: tuple[Any, ...], options: dict[str, Any], expected: bool
) -> None:
    assert adds_in_any_order(Call(name, [], [], args, options)) == expected


@pytest.mark.parametrize("longest", [0.5, 1e9])
def test_adam_divides_by_what_would_clip(longest: float) -> None:
    first = [nn.Parameter(drawn(5, 3)), nn.Parameter(drawn(4, seed=1))]
    apart, fused = (
        Adam(copy.deepcopy(first), [1.0, 3.0], lr=1e-2, beta1=0.9, beta2=0.99) for _ in range(2)
    )
    for step in range(4):
        norms = list[Tensor]()
        for adam in (apart, fused):
            for index, parameter in enumerate(adam.trained):
                parameter.grad = drawn(*parameter.shape, seed=10 * step + index)
        norms.append(apart.clip(longest))
        apart.update(1e-2)
        with as_on_cuda:
            norms.append(fused.clip(longest))
        fused.update(1e-2)
        torch.testing.assert_close(*norms)
    assert (first[0] - apart.trained[0]).abs().max() > 1e-3
    for one, other in zip(apart.trained, fused.trained, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def trained(folder: Path, *words: str) -> Trainer:
    config = small_run(folder, *words).config
    sae = new_sae(config, 16)
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(16))
    trainer = new_trainer(config, sae)
    for step in range(4):
        trainer.step(drawn(512, 16, seed=step), wanted=False)
    return trainer


@pytest.mark.parametrize("method", ["topk", "mutual_choice", "feature_choice", "relu", "gated"])
def test_a_method_trains_to_the_same_weights(method: str, tmp_path: Path) -> None:
    words = [f"method={method}", "aux_loss=aux_k", "training.dead_window_tokens=1"]
    if method == "feature_choice":
        words.append("allocator=feature_choice_scratch")
    own = trained(tmp_path, *words)
    with as_on_cuda, patch("sae_sweeps.engine.device.looks_whole", return_value=True):
        other = trained(tmp_path, *words)
    for (name, one), two in zip(own.sae.named_parameters(), other.sae.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5, msg=name)


def test_combinations_hold_every_pair_of_options() -> None:
    def pairs(every: bool) -> set[tuple[tuple[str, str], ...]]:
        cells = combinations(every)
        return {pair for cell in cells for pair in itertools.combinations(cell.items(), 2)}

    assert pairs(every=False) == pairs(every=True)


SHORT = (*LENGTH, "training.tokens=49152", "d_sae=512", "evaluation.tokens=8192")


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_in_bfloat16_it_ends_as_good(method: str, tmp_path: Path) -> None:
    """At its full length `emulated` finds differences of half a per cent at most."""
    row = next(compared(tmp_path, method, seed=0, length=SHORT))
    assert abs(row["fvu_percent"]) < 0.5, row
    assert abs(row["l0_difference"]) < 0.2, row
