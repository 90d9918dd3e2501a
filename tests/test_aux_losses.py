"""aux_k against a naive reference: value, gradients, and what must not happen."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.allocator.none import NoAllocator
from sae_sweeps.allocator.token_choice import TokenChoice
from sae_sweeps.architecture.gated import Gated
from sae_sweeps.architecture.jumprelu import JumpReLU
from sae_sweeps.architecture.relu import ReLU
from sae_sweeps.aux_loss.aux_k import AuxK
from sae_sweeps.aux_loss.none import NoAux
from sae_sweeps.interfaces import Architecture

torch.set_num_threads(1)

D_IN, D_SAE = 4, 11


def sae_of(budgeted: bool, seed: int = 0) -> Architecture:
    """A ReLU SAE in float64 with nothing at zero, about a third of its entries negative."""
    allocator = TokenChoice(D_SAE, k=2) if budgeted else NoAllocator(D_SAE)
    sae = ReLU(D_IN, D_SAE, allocator, encoder_scale=1.0, l1_coef=0.0, target_l0=2.0).double()
    return filled(sae, seed)


def filled(sae: Architecture, seed: int) -> Architecture:
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return sae


def batch_of(seed: int, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(1000 + seed)
    return torch.randn(batch, D_IN, generator=generator, dtype=torch.float64)


def naive(
    sae: Architecture,
    x: Tensor,
    recon: Tensor,
    dead: Tensor,
    k_aux: int,
    coef: float,
    rectify: bool,
) -> Tensor:
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.get_parameter("b_enc")
    residual = (x - recon).detach()
    error = torch.zeros((), dtype=x.dtype)
    for token in range(len(x)):
        ranked = sorted((-pre_acts[token, i].item(), i) for i in range(D_SAE) if dead[i])
        e_hat = torch.zeros(D_IN, dtype=x.dtype)
        for _, latent in ranked[:k_aux]:
            value = pre_acts[token, latent]
            e_hat = e_hat + (value.clamp(min=0) if rectify else value) * sae.W_dec[latent]
        error = error + ((residual[token] - e_hat) ** 2).sum()
    return coef * error / ((residual - residual.mean(0)) ** 2).sum()


def gradients(sae: Architecture, loss: Tensor) -> dict[str, Tensor]:
    sae.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in sae.named_parameters()}


@settings(deadline=None)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(2, 9),
    k_aux=st.integers(1, D_SAE),
    dead=st.lists(st.booleans(), min_size=D_SAE, max_size=D_SAE).filter(any),
    budgeted=st.booleans(),
)
def test_value_and_gradients(
    seed: int, batch: int, k_aux: int, dead: list[bool], budgeted: bool
) -> None:
    sae, x, mask = sae_of(budgeted, seed), batch_of(seed, batch), torch.tensor(dead)
    step = sae(x, mask)
    loss = AuxK(D_IN, D_SAE, coef=0.07, k_aux=k_aux)(step)
    reference = naive(sae, x, step.recon, mask, k_aux, 0.07, budgeted)
    torch.testing.assert_close(loss, reference)
    assert loss > 0
    wanted = gradients(sae, reference)
    assert wanted["W_dec"].abs().sum() > 0 or budgeted
    for name, gradient in gradients(sae, loss).items():
        torch.testing.assert_close(gradient, wanted[name], msg=lambda m, name=name: f"{name}: {m}")


def test_k_aux_is_half_the_input_width_by_default() -> None:
    sae, x, mask = sae_of(True), batch_of(0, 6), torch.ones(D_SAE, dtype=torch.bool)
    step = sae(x, mask)
    half = AuxK(D_IN, D_SAE, coef=1.0, k_aux=D_IN // 2)(step)
    assert torch.equal(AuxK(D_IN, D_SAE, coef=1.0, k_aux=None)(step), half)
    assert not torch.equal(AuxK(D_IN, D_SAE, coef=1.0, k_aux=1)(step), half)


def test_living_latents_get_no_gradient_and_the_residual_none_either() -> None:
    sae, x, mask = sae_of(True), batch_of(1, 6), torch.zeros(D_SAE, dtype=torch.bool)
    mask[[2, 5]] = True
    found = gradients(sae, AuxK(D_IN, D_SAE, coef=1.0, k_aux=2)(sae(x, mask)))
    assert found["W_enc"][:, mask].any() and not found["W_enc"][:, ~mask].any()
    assert found["b_enc"][mask].any() and not found["b_enc"][~mask].any()
    assert found["W_dec"][mask].any() and not found["W_dec"][~mask].any()


@pytest.mark.parametrize("budgeted", [True, False])
def test_no_dead_latent_costs_exactly_nothing(budgeted: bool) -> None:
    sae, x = sae_of(budgeted), batch_of(2, 6)
    loss = AuxK(D_IN, D_SAE, coef=1.0, k_aux=3)(sae(x, torch.zeros(D_SAE, dtype=torch.bool)))
    assert (loss.shape, loss.item(), loss.requires_grad) == ((), 0, False)
    loss = NoAux(D_IN, D_SAE)(sae(x, torch.ones(D_SAE, dtype=torch.bool)))
    assert (loss.shape, loss.item(), loss.requires_grad) == ((), 0, False)


def test_a_latent_that_is_always_negative_is_reached_only_by_the_raw_rule() -> None:
    for budgeted in (True, False):
        sae, x = sae_of(budgeted), batch_of(3, 20)
        bias = sae.get_parameter("b_enc")
        bias.data[7] = -100.0
        dead = torch.arange(D_SAE) == 7
        found = gradients(sae, AuxK(D_IN, D_SAE, coef=1.0, k_aux=None)(sae(x, dead)))
        assert found["W_enc"].any() != budgeted
        assert found["b_enc"].any() != budgeted


@pytest.mark.parametrize("kind", ["gated", "jumprelu"])
def test_architectures_without_budget_enter_raw(kind: str) -> None:
    """A dead Gated or JumpReLU latent is silent everywhere: rectified, it gets no gradient."""
    allocator = NoAllocator(D_SAE)
    sae: Architecture
    if kind == "gated":
        sae = Gated(D_IN, D_SAE, allocator, encoder_scale=1.0, l1_coef=0.0, target_l0=2.0)
    else:
        sae = JumpReLU(
            D_IN,
            D_SAE,
            allocator,
            encoder_scale=1.0,
            l0_coef=0.0,
            target_l0=2.0,
            bandwidth=0.1,
            initial_threshold=0.1,
            threshold_lr_factor=1.0,
        )
    sae = filled(sae.double(), 4)
    sae.get_parameter("b_gate" if kind == "gated" else "b_enc").data[7] = -100.0
    found = gradients(
        sae, AuxK(D_IN, D_SAE, coef=1.0, k_aux=None)(sae(batch_of(4, 20), torch.arange(D_SAE) == 7))
    )
    assert found["W_enc"][:, 7].any() and not found["W_enc"][:, :7].any()


def constant_residual(case: str, budgeted: bool) -> tuple[Architecture, Tensor]:
    """Batches whose residual has no variance: one token, equal tokens, a perfect reconstruction."""
    sae, x = sae_of(budgeted), batch_of(5, 1)
    if case == "equal tokens":
        x = x.expand(4, -1)
    if case == "perfect":
        sae.get_parameter("b_enc").data.fill_(-100.0)
        x = sae.b_dec.detach().expand(4, -1).clone()
    return sae, x


@pytest.mark.parametrize("case", ["one token", "equal tokens", "perfect"])
@pytest.mark.parametrize("budgeted", [True, False])
def test_a_residual_without_variance_gives_a_finite_loss(case: str, budgeted: bool) -> None:
    sae, x = constant_residual(case, budgeted)
    loss = AuxK(D_IN, D_SAE, coef=1.0, k_aux=2)(sae(x, torch.ones(D_SAE, dtype=torch.bool)))
    assert loss.isfinite()


@pytest.mark.parametrize("case", ["one token", "equal tokens", "perfect"])
@pytest.mark.parametrize("budgeted", [True, False])
def test_a_residual_without_variance_gives_finite_gradients(case: str, budgeted: bool) -> None:
    sae, x = constant_residual(case, budgeted)
    loss = AuxK(D_IN, D_SAE, coef=1.0, k_aux=2)(sae(x, torch.ones(D_SAE, dtype=torch.bool)))
    for name, gradient in gradients(sae, loss).items():
        assert gradient.isfinite().all(), name
