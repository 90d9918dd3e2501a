"""Architectures against naive references: codes, gradients, rescaling, SAELens' rules."""

import copy
import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.allocator.feature_choice import FeatureChoice
from sae_sweeps.allocator.mutual_choice import MutualChoice
from sae_sweeps.allocator.none import NoAllocator
from sae_sweeps.allocator.thresholds import LearntThreshold
from sae_sweeps.allocator.token_choice import TokenChoice
from sae_sweeps.architecture.coefficient import FIRST, Coefficient
from sae_sweeps.architecture.gated import Gated
from sae_sweeps.architecture.jumprelu import JumpReLU
from sae_sweeps.architecture.relu import ReLU
from sae_sweeps.engine.acts import Listed, Selection, SparseActs
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.averages import TokenAverage
from sae_sweeps.interfaces import Allocator, Architecture, Inference, Progress, SAELensWeights, Step
from tests.support.small import PLAIN_L1, pre_acts_of

torch.set_num_threads(1)

D_IN, D_SAE, BATCH = 5, 14, 24
L1, L0, TARGET, WIDTH = 0.3, 0.7, 3.0, 0.4
Tensors = dict[str, Tensor]


def feature() -> Allocator:
    return FeatureChoice(
        D_SAE,
        k=3.0,
        exponent=1.0,
        shift=5.0,
        mutual_tokens=0,
        horizon_tokens=100,
        rounding="largest_remainder",
        seed=0,
    )


ALLOCATORS: dict[str, Callable[[], Allocator]] = {
    "none": lambda: NoAllocator(D_SAE),
    "token": lambda: TokenChoice(D_SAE, k=3),
    "mutual": lambda: MutualChoice(D_SAE, k=3.0, horizon_tokens=100),
    "feature": feature,
}
FIXED_L1: dict[str, Any] = {
    **PLAIN_L1,
    "encoder_scale": 0.6,
    "l1_coef": L1,
    "target_l0": TARGET,
}
ARCHITECTURES: dict[str, Callable[[Allocator], Architecture]] = {
    "relu": lambda allocator: ReLU(D_IN, D_SAE, allocator, unit_norm=True, **FIXED_L1),
    "gated": lambda allocator: Gated(D_IN, D_SAE, allocator, **FIXED_L1),
    "jumprelu": lambda allocator: JumpReLU(
        D_IN,
        D_SAE,
        allocator,
        encoder_scale=0.6,
        l0_penalty="quadratic",
        l0_coef=L0,
        target_l0=TARGET,
        coef_warmup_tokens=0,
        bandwidth=WIDTH,
        initial_threshold=0.3,
        threshold_lr_factor=1.0,
    ),
}
CELLS = list(product(ARCHITECTURES, ALLOCATORS))
every_cell = pytest.mark.parametrize(("architecture", "allocator"), CELLS)


def sae_of(architecture: str, allocator: str, seed: int = 0) -> Architecture:
    """An SAE in float64 whose parameters are all far from their first values."""
    sae = ARCHITECTURES[architecture](ALLOCATORS[allocator]()).double()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = 0.3 * drawn - 1.0 if name == "log_threshold" else 0.6 * drawn
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return sae


def batch_of(seed: int, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(500 + seed)
    return torch.randn(batch, D_IN, generator=generator, dtype=torch.float64)


def dead() -> Tensor:
    return torch.zeros(D_SAE, dtype=torch.bool)


def trained(architecture: str, allocator: str) -> Architecture:
    """An SAE whose allocator has seen a few batches."""
    return copy.deepcopy(_trained(architecture, allocator))


@cache
def _trained(architecture: str, allocator: str) -> Architecture:
    sae = sae_of(architecture, allocator).train()
    for index in range(20):
        sae.observe(sae(batch_of(index), dead()), Progress((index + 1) * BATCH, 10**6, 1e-3))
    return sae


def mask_of(selection: Selection, batch: int) -> Tensor:
    if selection.flat is None:
        return torch.ones(batch, D_SAE, dtype=torch.float64)
    mask = torch.zeros(batch * D_SAE, dtype=torch.float64)
    mask[selection.flat] = 1.0
    return mask.view(batch, D_SAE)


# ---------------------------------------------------------------- naive references
# S, p: x, the selection's mask, parameters -> codes, penalty


def naive_relu(x: Tensor, S: Tensor, p: Tensors) -> tuple[Tensor, Tensor]:
    f = S * ((x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]).clamp(min=0)
    return f, L1 * f.sum(1).mean()


def naive_gated(x: Tensor, S: Tensor, p: Tensors) -> tuple[Tensor, Tensor]:
    gate = (x - p["b_dec"]) @ p["W_enc"] + p["b_gate"]
    magnitude = (x - p["b_dec"]) @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
    f = S * (gate > 0).double() * magnitude.clamp(min=0)
    f_gate = S * gate.clamp(min=0)
    aux = x - (f_gate @ p["W_dec"].detach() + p["b_dec"].detach())
    return f, L1 * f_gate.sum(1).mean() + aux.pow(2).sum(1).mean()


def naive_jumprelu(x: Tensor, S: Tensor, p: Tensors) -> tuple[Tensor, Tensor]:
    u = (x - p["b_dec"]) @ p["W_enc"] + p["b_enc"]
    theta = p["log_threshold"].exp()
    open_, near = (u > theta).double(), ((u - theta).abs() / WIDTH < 0.5).double()
    moved = theta - theta.detach()  # 0, with gradient 1
    f = S * (u * open_ - theta.detach() / WIDTH * near * moved)
    l0 = (open_ - near / WIDTH * moved).sum(1).mean()
    return f, L0 * (l0 / TARGET - 1) ** 2


NAIVE = {"relu": naive_relu, "gated": naive_gated, "jumprelu": naive_jumprelu}


def leaves(sae: Architecture) -> Tensors:
    return {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}


def grads(tensors: Tensors, loss: Tensor) -> Tensors:
    for tensor in tensors.values():
        tensor.grad = None
    loss.backward()
    return {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in tensors.items()}


def assert_same(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(
            found[name], wanted[name], rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


@every_cell
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_codes_and_reconstruction(architecture: str, allocator: str, mode: str) -> None:
    sae, x = trained(architecture, allocator).train(mode == "train"), batch_of(77)
    ranked = list[Affinities]()
    sae.allocator.register_forward_pre_hook(lambda _, given: ranked.append(given[0]))
    step = sae(x, dead())
    f, penalty = NAIVE[architecture](x, mask_of(step.selection, BATCH), leaves(sae))
    assert 0 < step.acts.l0() < D_SAE
    torch.testing.assert_close(step.acts.dense(), f)
    torch.testing.assert_close(step.recon, f @ sae.W_dec + sae.b_dec)
    torch.testing.assert_close(sae.penalty(step).double(), penalty, rtol=1e-6, atol=1e-9)
    assert torch.equal(step.acts.active, step.acts.values > 0)
    detached = [step.pre_acts.values, *(affinities.values for affinities in ranked)]
    if isinstance(step.selection, Listed):
        detached += [step.selection.pre_acts, step.selection.affinities]
    assert len(ranked) == 1 and not any(tensor.requires_grad for tensor in detached)
    assert step.budgeted == (allocator != "none")


@every_cell
def test_gradients_of_the_reconstruction(architecture: str, allocator: str) -> None:
    sae, x = trained(architecture, allocator).train(), batch_of(78)
    step, p = sae(x, dead()), leaves(sae)
    f, _ = NAIVE[architecture](x, mask_of(step.selection, BATCH), p)
    wanted = grads(p, (x - f @ p["W_dec"] - p["b_dec"]).pow(2).sum(1).mean())
    found = grads(dict(sae.named_parameters()), (x - step.recon).pow(2).sum() / BATCH)
    assert_same(found, wanted)


@every_cell
def test_gradients_of_the_penalty(architecture: str, allocator: str) -> None:
    sae, x = trained(architecture, allocator).train(), batch_of(79)
    step, p = sae(x, dead()), leaves(sae)
    _, penalty = NAIVE[architecture](x, mask_of(step.selection, BATCH), p)
    assert_same(grads(dict(sae.named_parameters()), sae.penalty(step)), grads(p, penalty))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 9999), batch=st.integers(1, 9))
def test_all_gradients_without_an_allocator(architecture: str, seed: int, batch: int) -> None:
    sae, x = sae_of(architecture, "none", seed), batch_of(seed, batch)
    step, p = sae(x, dead()), leaves(sae)
    f, penalty = NAIVE[architecture](x, torch.ones(batch, D_SAE, dtype=torch.float64), p)
    wanted = grads(p, (x - f @ p["W_dec"] - p["b_dec"]).pow(2).sum(1).mean() + penalty)
    loss = (x - step.recon).pow(2).sum() / batch + sae.penalty(step)
    assert_same(grads(dict(sae.named_parameters()), loss), wanted)


# ---------------------------------------------------------------- Gated


def test_the_gated_penalty_leaves_the_decoder_alone() -> None:
    for allocator in ALLOCATORS:
        sae = sae_of("gated", allocator)
        found = grads(dict(sae.named_parameters()), sae.penalty(sae(batch_of(1), dead())))
        assert not found["W_dec"].any() and not found["b_mag"].any() and not found["r_mag"].any()
        assert found["W_enc"].any() and found["b_gate"].any()


def test_the_frozen_decoder_bias_gets_nothing_even_where_the_gate_is_shut() -> None:
    sae = sae_of("gated", "none")
    sae.get_parameter("b_gate").data.fill_(-100.0)  # aux = x - b_dec, whose gradient must be cut
    found = grads(dict(sae.named_parameters()), sae.penalty(sae(batch_of(1), dead())))
    assert not found["b_dec"].any()


def test_no_gradient_passes_the_indicator() -> None:
    for allocator in ALLOCATORS:
        sae = sae_of("gated", allocator)
        found = grads(dict(sae.named_parameters()), sae(batch_of(2), dead()).recon.sum())
        assert not found["b_gate"].any()
        assert found["b_mag"].any() and found["r_mag"].any() and found["W_enc"].any()


def test_gated_is_jumprelu_with_a_rectifier() -> None:
    """theta = b_mag - exp(r) b_gate on the magnitude, effective only above 0 (arXiv 2404.16014)."""
    sae, x = sae_of("gated", "none", 3), batch_of(3, 400)
    p = leaves(sae)
    u = (x - p["b_dec"]) @ (p["W_enc"] * p["r_mag"].exp()) + p["b_mag"]
    theta = p["b_mag"] - p["r_mag"].exp() * p["b_gate"]
    assert (theta < 0).any() and (theta > 0).any()
    torch.testing.assert_close(sae(x, dead()).acts.dense(), (u * (u > theta)).clamp(min=0))


# ---------------------------------------------------------------- JumpReLU


def one_latent(
    l0_coef: float,
    target_l0: float,
    l0_penalty: Literal["quadratic", "linear"] = "quadratic",
) -> JumpReLU:
    """u = x, theta = 0.5, bandwidth 0.1."""
    sae = JumpReLU(
        1,
        1,
        NoAllocator(1),
        encoder_scale=1.0,
        l0_penalty=l0_penalty,
        l0_coef=l0_coef,
        target_l0=target_l0,
        coef_warmup_tokens=0,
        bandwidth=0.1,
        initial_threshold=0.5,
        threshold_lr_factor=1.0,
    ).double()
    sae.W_enc.data.fill_(1.0)
    sae.W_dec.data.fill_(1.0)
    return sae


GOLDEN = [(0.10, 0.0, 0, 0), (0.52, 0.52, 1, 1), (0.48, 0.0, 0, 1), (1.00, 1.00, 1, 0)]
"""u, f, df/du, and whether the kernel reaches it"""


@pytest.mark.parametrize(("u", "f", "slope", "near"), GOLDEN)
def test_golden_gradients_of_the_jump(u: float, f: float, slope: int, near: int) -> None:
    sae = one_latent(0.0, 1.0)
    x = torch.tensor([[u]], dtype=torch.float64, requires_grad=True)
    recon = sae(x, torch.zeros(1, dtype=torch.bool)).recon
    recon.sum().backward()
    assert recon.item() == pytest.approx(f)
    assert x.grad is not None and x.grad.item() == slope
    assert sae.log_threshold.grad is not None
    theta_grad = -5.0 * near  # and the log threshold's chain factor, theta
    assert sae.log_threshold.grad.item() == pytest.approx(theta_grad * 0.5)


@pytest.mark.parametrize(("u", "_f", "slope", "near"), GOLDEN)
def test_golden_gradients_of_the_l0_penalty(u: float, _f: float, slope: int, near: int) -> None:
    sae = one_latent(1.0, 0.25)
    x = torch.tensor([[u]], dtype=torch.float64, requires_grad=True)
    penalty = sae.penalty(sae(x, torch.zeros(1, dtype=torch.bool)))
    penalty.backward()
    assert penalty.item() == pytest.approx((slope / 0.25 - 1) ** 2)
    assert sae.log_threshold.grad is not None
    outer = 2 * (slope / 0.25 - 1) / 0.25
    assert sae.log_threshold.grad.item() == pytest.approx(outer * -10.0 * near * 0.5)
    assert x.grad is None or x.grad.item() == 0  # the count has no gradient in u


@pytest.mark.parametrize(("u", "_f", "slope", "near"), GOLDEN)
def test_golden_gradients_of_the_linear_penalty(u: float, _f: float, slope: int, near: int) -> None:
    sae = one_latent(0.7, 0.25, "linear")
    x = torch.tensor([[u]], dtype=torch.float64, requires_grad=True)
    penalty = sae.penalty(sae(x, torch.zeros(1, dtype=torch.bool)))
    penalty.backward()
    assert penalty.item() == pytest.approx(0.7 * slope)
    assert sae.log_threshold.grad is not None
    assert sae.log_threshold.grad.item() == pytest.approx(0.7 * -10.0 * near * 0.5)
    assert x.grad is None or x.grad.item() == 0


def test_gradients_of_a_batch_are_the_means_of_its_tokens() -> None:
    sae = one_latent(0.0, 1.0)
    x = torch.tensor([[u] for u, *_ in GOLDEN], dtype=torch.float64)
    sae(x, torch.zeros(1, dtype=torch.bool)).recon.mean().backward()
    assert sae.log_threshold.grad is not None
    assert sae.log_threshold.grad.item() == pytest.approx((-2.5 - 2.5) / 4)


def test_jumprelu_coefficient_and_learning_rate() -> None:
    def sae(
        coef: float | Literal["auto"],
        allocator: Allocator,
        kind: Literal["quadratic", "linear"] = "quadratic",
    ) -> JumpReLU:
        return JumpReLU(
            D_IN,
            D_SAE,
            allocator,
            encoder_scale=1.0,
            l0_penalty=kind,
            l0_coef=coef,
            target_l0=3.0,
            coef_warmup_tokens=0,
            bandwidth=0.1,
            initial_threshold=0.1,
            threshold_lr_factor=7.0,
        )

    for kind in ("quadratic", "linear"):
        assert sae("auto", TokenChoice(D_SAE, k=3), kind).l0_coef.value == 0
        for allocator in (NoAllocator(D_SAE), TokenChoice(D_SAE, k=3)):
            assert sae(0.4, allocator, kind).l0_coef.value == pytest.approx(0.4)
    quadratic, linear = (sae("auto", NoAllocator(D_SAE), k) for k in ("quadratic", "linear"))
    assert quadratic.l0_coef.value == 1 and not quadratic.l0_coef.steered
    assert linear.l0_coef.value > 0 and linear.l0_coef.steered
    assert sae(0.4, NoAllocator(D_SAE)).lr_factors() == {"log_threshold": 7.0}
    torch.testing.assert_close(
        sae(0.4, NoAllocator(D_SAE)).log_threshold.exp(), torch.full((D_SAE,), 0.1)
    )


# ---------------------------------------------------------------- first values, rounding


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_initialise(architecture: str) -> None:
    def drawn(seed: int) -> Architecture:
        sae = ARCHITECTURES[architecture](NoAllocator(D_SAE))
        sae.initialise(torch.Generator().manual_seed(seed), mean)
        return sae

    mean = torch.arange(D_IN, dtype=torch.float32)
    sae, same, other = drawn(0), drawn(0), drawn(1)
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(D_SAE))
    torch.testing.assert_close(sae.W_enc, 0.6 * sae.W_dec.T)
    assert torch.equal(sae.b_dec, mean)
    assert torch.equal(sae.W_dec, same.W_dec) and not torch.equal(sae.W_dec, other.W_dec)
    assert sae.W_enc.data_ptr() != sae.W_dec.data_ptr()  # a view of W_dec would be trained with it
    assert sae(mean.expand(3, -1), dead()).acts.dense().max() < 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_folding_the_centre_into_the_bias_keeps_float32_accurate(architecture: str) -> None:
    """The mean may be a hundred times the spread, as with GPT-2's outlier dimensions."""
    exact = sae_of(architecture, "none")
    exact.b_dec.data *= 100
    x = exact.b_dec.detach() + batch_of(1)
    single = ARCHITECTURES[architecture](NoAllocator(D_SAE))
    single.load_state_dict(exact.state_dict())
    found, wanted = single(x.float(), dead()), exact(x.float().double(), dead())
    error = (found.pre_acts.values - wanted.pre_acts.values).abs().max()
    assert error / wanted.pre_acts.values.std() < 1e-3


@every_cell
def test_one_token_batches(architecture: str, allocator: str) -> None:
    sae = trained(architecture, allocator)
    x = batch_of(5)
    for mode in (True, False):
        for token in x.split(1)[:4]:
            step = sae.train(mode)(token, dead())
            assert step.recon.shape == (1, D_IN) and step.recon.isfinite().all()
            loss = (token - step.recon).pow(2).sum() + sae.penalty(step)
            assert all(
                g.isfinite().all() for g in grads(dict(sae.named_parameters()), loss).values()
            )
    whole = sae.eval()(x, dead()).acts.dense()
    alone = torch.cat([sae(token, dead()).acts.dense() for token in x.split(1)])
    torch.testing.assert_close(whole, alone)  # batch-free


@pytest.mark.parametrize("architecture", ["relu", "gated", "jumprelu"])
@pytest.mark.parametrize("allocator", ["mutual", "feature"])
def test_batch_free_l0_agrees_with_that_of_batches(architecture: str, allocator: str) -> None:
    sae, batch = sae_of(architecture, allocator, seed=2), 256  # few large batches: little noise
    if architecture == "gated":
        sae.get_parameter(
            "b_mag"
        ).data -= 1.5  # open gates whose magnitude is negative are not active
    for average in sae.modules():
        if isinstance(average, TokenAverage | LearntThreshold):
            average.horizon_tokens = 5 * batch
    for index in range(20):
        progress = Progress((index + 1) * batch, 10**6, 1e-3)
        sae.observe(sae.train()(batch_of(index, batch), dead()), progress)
    fresh = batch_of(-1, 16 * batch)
    batches = [sae.train()(part, dead()).acts.l0().item() for part in fresh.split(batch)]
    free = sae.eval()(fresh, dead()).acts.l0().item()
    assert free == pytest.approx(sum(batches) / len(batches), rel=0.05)


# ---------------------------------------------------------------- rescaling


@every_cell
@pytest.mark.parametrize("factor", [0.013, 37.0])
def test_a_rescaled_sae_does_the_same_to_rescaled_inputs(
    architecture: str, allocator: str, factor: float
) -> None:
    sae, x = trained(architecture, allocator), batch_of(88)
    before = {mode: sae.train(mode)(x, dead()) for mode in (True, False)}
    l0_slope = grads(dict(sae.named_parameters()), sae.penalty(before[True])).get("log_threshold")
    sae.rescale(factor)
    for mode, old in before.items():
        step = sae.train(mode)(factor * x, dead())
        assert old.acts.active.any()
        torch.testing.assert_close(step.recon, factor * old.recon, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(
            step.acts.dense(), factor * old.acts.dense(), rtol=1e-6, atol=1e-9
        )
    if l0_slope is not None:  # the kernel's width is in units of the activations
        step = sae.train()(factor * x, dead())
        found = grads(dict(sae.named_parameters()), sae.penalty(step))["log_threshold"]
        torch.testing.assert_close(found, l0_slope, rtol=1e-5, atol=1e-9)


# ---------------------------------------------------------------- SAELens


def saelens_codes(x: Tensor, weights: SAELensWeights) -> Tensor:
    """SAELens' inference rules, with `apply_b_dec_to_input`."""
    t = weights.tensors
    centred = x - t["b_dec"]
    if weights.architecture == "gated":
        gate = centred @ t["W_enc"] + t["b_gate"]
        magnitude = centred @ (t["W_enc"] * t["r_mag"].exp()) + t["b_mag"]
        return (gate > 0).to(x.dtype) * magnitude.relu()
    pre_acts = centred @ t["W_enc"] + t["b_enc"]
    if weights.architecture == "topk":
        top = pre_acts.topk(weights.cfg["k"], dim=1)
        return torch.zeros_like(pre_acts).scatter(1, top.indices, top.values.relu())
    if weights.architecture == "jumprelu":
        return pre_acts.relu() * (pre_acts > t["threshold"])
    assert weights.architecture == "standard"
    return pre_acts.relu()


SAELENS = {
    ("relu", "none"): "standard",
    ("relu", "token"): "topk",
    ("relu", "mutual"): "jumprelu",
    ("relu", "feature"): "jumprelu",
    ("gated", "none"): "gated",
    ("gated", "token"): None,
    ("gated", "mutual"): "gated",
    ("gated", "feature"): "gated",
    ("jumprelu", "none"): "jumprelu",
    ("jumprelu", "token"): None,
    ("jumprelu", "mutual"): "jumprelu",
    ("jumprelu", "feature"): "jumprelu",
}
NAMES = {
    "standard": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "topk": {"W_enc", "b_enc", "W_dec", "b_dec"},
    "jumprelu": {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"},
    "gated": {"W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"},
}


@every_cell
@pytest.mark.parametrize("seen", [True, False])
def test_saelens_reads_the_same_sae(architecture: str, allocator: str, seen: bool) -> None:
    sae = (trained if seen else sae_of)(architecture, allocator).eval()
    sae.rescale(3.1)
    weights = sae.saelens()
    expected = SAELENS[architecture, allocator]
    if expected is None:
        assert weights is None
        return
    assert weights is not None and weights.architecture == expected
    assert weights.tensors.keys() == NAMES[expected]
    assert not any(
        tensor.requires_grad or tensor.isnan().any() for tensor in weights.tensors.values()
    )
    x = 3.1 * batch_of(66, 400)
    step = sae(x, dead())
    codes = saelens_codes(x, weights)
    assert codes.any() or not seen
    torch.testing.assert_close(codes, step.acts.dense())
    torch.testing.assert_close(
        codes @ weights.tensors["W_dec"] + weights.tensors["b_dec"], step.recon
    )


def test_a_latent_that_never_fired_stays_silent_in_saelens() -> None:
    for architecture in ARCHITECTURES:
        sae = trained(architecture, "feature")
        smallest = sae.allocator.get_submodule("threshold.smallest")
        smallest.get_buffer("weight")[3] = 0.0
        weights = sae.eval().saelens()
        assert weights is not None
        codes = saelens_codes(50 * batch_of(1, 200), weights)
        assert not codes[:, 3].any() and codes.any() and codes.isfinite().all()
        assert not sae(50 * batch_of(1, 200), dead()).acts.tokens_per_latent[3]


# ---------------------------------------------------------------- the coefficient


class Never(Allocator):
    """Stands for any allocator that sets the budget, or not."""

    sets_budget = True

    def forward(self, affinities: Affinities) -> Selection:
        return Selection(None)

    def observe(self, step: Step, progress: Progress) -> None:
        raise NotImplementedError

    def inference(self) -> Inference:
        raise NotImplementedError

    def rescale(self, factor: float) -> None:
        raise NotImplementedError


def step_with(l0: float) -> Step:
    """A step of 1000 tokens with this mean L0."""
    values = torch.zeros(1000 * 100)
    values[: round(l0 * 1000)] = 1.0
    acts = SparseActs(None, values.view(1000, 100))
    empty, mask = torch.zeros(1000, 1), torch.zeros(100, dtype=torch.bool)
    return Step(
        empty,
        pre_acts_of(acts.values),
        Selection(None),
        acts,
        acts,
        empty,
        torch.zeros(100, 1),
        mask,
        False,
    )


def steer(
    coefficient: Coefficient, steps: int, lr: float, lag: float, l0: float = 60.0
) -> list[float]:
    """A plant: log L0 follows log(3 / lambda^0.6) with a lag in steps of learning rate."""
    seen: list[float] = []
    log_l0 = math.log(l0)
    for index in range(steps):
        aim = math.log(3) - 0.6 * math.log(max(coefficient.value.item(), 1e-9))
        log_l0 += min(1.0, lr / lag) * (min(aim, math.log(90)) - log_l0)
        seen.append(math.exp(log_l0))
        coefficient.observe(step_with(math.exp(log_l0)), Progress((index + 1) * 64, steps * 64, lr))
    return seen


@pytest.mark.parametrize("target", [4.0, 20.0])
@pytest.mark.parametrize("lag", [0.03, 0.1])
def test_a_steered_coefficient_meets_its_target(target: float, lag: float) -> None:
    coefficient = Coefficient("auto", target, budgeted=False, warmup_tokens=0)
    seen = steer(coefficient, 500, 3e-3, lag)
    assert seen[-1] == pytest.approx(target, rel=0.03)
    assert max(seen[300:]) < 1.2 * target and min(seen[300:]) > target / 1.2


def test_a_steered_coefficient_is_fixed_for_the_last_fifth() -> None:
    coefficient = Coefficient("auto", 10.0, budgeted=False, warmup_tokens=0)
    values: list[float] = []
    for index in range(100):
        coefficient.observe(step_with(30.0), Progress((index + 1) * 64, 100 * 64, 1e-3))
        values.append(coefficient.value.item())
    assert values[:80] == sorted(set(values[:80])), (
        "too many active latents: it rises at every step"
    )
    assert set(values[80:]) == {values[79]}


def test_other_coefficients_never_move() -> None:
    for coefficient, value in (
        (Coefficient(0.25, 10.0, budgeted=False, warmup_tokens=0), 0.25),
        (Coefficient(0.25, 10.0, budgeted=True, warmup_tokens=0), 0.25),
        (Coefficient(0.0, 10.0, budgeted=False, warmup_tokens=0), 0.0),
        (Coefficient("auto", 10.0, budgeted=True, warmup_tokens=0), 0.0),
    ):
        coefficient.observe(step_with(50.0), Progress(64, 6400, 1e-3))
        assert coefficient.value.item() == pytest.approx(value)


@pytest.mark.parametrize("architecture", ["relu", "gated"])
def test_an_automatic_coefficient_is_0_where_an_allocator_sets_the_budget(
    architecture: str,
) -> None:
    options = FIXED_L1 | ({"unit_norm": True} if architecture == "relu" else {})
    kind: Any = {"relu": ReLU, "gated": Gated}[architecture]
    sae = kind(D_IN, D_SAE, Never(), **options | {"l1_coef": "auto"})
    assert sae.sparsity.coefficient.value == 0
    sae = kind(D_IN, D_SAE, NoAllocator(D_SAE), **options | {"l1_coef": "auto"})
    assert sae.sparsity.coefficient.value > 0


def test_a_steered_coefficient_goes_on_from_its_state() -> None:
    one = Coefficient("auto", 10.0, budgeted=False, warmup_tokens=0)
    steer(one, 20, 3e-3, 0.05)
    other = Coefficient("auto", 10.0, budgeted=False, warmup_tokens=0)
    other.load_state_dict(one.state_dict())
    for coefficient in (one, other):
        coefficient.observe(step_with(17.0), Progress(64, 6400, 1e-3))
    assert torch.equal(one.log_value, other.log_value)


def test_extreme_l0_moves_a_coefficient_by_a_bounded_step() -> None:
    for l0 in (0.0, 100.0):
        coefficient = Coefficient("auto", 10.0, budgeted=False, warmup_tokens=0)
        coefficient.observe(step_with(l0), Progress(64, 6400, 3e-3))
        assert 0.5 < coefficient.value.item() / FIRST < 2
