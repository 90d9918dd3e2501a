"""Penalties and nested losses: naive references, invariances, and a toy trained for real."""

import copy
import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.allocator.mutual_choice import MutualChoice
from sae_sweeps.allocator.none import NoAllocator
from sae_sweeps.allocator.token_choice import TokenChoice
from sae_sweeps.architecture.coefficient import Coefficient
from sae_sweeps.architecture.matryoshka import group_ends, prefix_recons
from sae_sweeps.architecture.penalty import BATCHES, FLOOR, SparsityPenalty, power
from sae_sweeps.aux_loss.none import NoAux
from sae_sweeps.config import options
from sae_sweeps.config.rules import obey
from sae_sweeps.config.signature import build
from sae_sweeps.engine.acts import Selection, SparseActs
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Allocator, Architecture, Progress, Step
from sae_sweeps.resampling.none import NoResampling
from tests.support.small import pre_acts_of, small_run, trainer_of
from tests.support.unchecked import unchecked

torch.set_num_threads(1)

D_IN, D_SAE, BATCH = 5, 14, 24
ALLOCATORS: dict[str, Callable[[], Allocator]] = {
    "none": lambda: NoAllocator(D_SAE),
    "token": lambda: TokenChoice(D_SAE, k=3),
    "mutual": lambda: MutualChoice(D_SAE, k=3.0, horizon_tokens=100),
}
every_allocator = pytest.mark.parametrize("allocator", ALLOCATORS)


@cache
def node_of(option: str) -> dict[str, Any]:
    return small_run(Path(), f"architecture={option}").config.nodes["architecture"]


def sae_of(option: str, allocator: str = "none", seed: int = 0, **changed: Any) -> Architecture:
    """A shipped architecture in float64, its parameters and its rows' norms drawn anew."""
    sae = build(node_of(option) | changed, D_IN, D_SAE, ALLOCATORS[allocator]()).double()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sae.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.data = 0.3 * drawn - 1.0 if name == "log_threshold" else 0.6 * drawn
    if sae.unit_norm:
        sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return sae


def batch_of(seed: int, batch: int = BATCH) -> Tensor:
    generator = torch.Generator().manual_seed(500 + seed)
    return torch.randn(batch, D_IN, generator=generator, dtype=torch.float64)


def dead() -> Tensor:
    return torch.zeros(D_SAE, dtype=torch.bool)


def trained(option: str, allocator: str, **changed: Any) -> Architecture:
    """An SAE whose allocator has seen a few batches."""
    return copy.deepcopy(_trained(option, allocator, **changed))


@cache
def _trained(option: str, allocator: str, **changed: Any) -> Architecture:
    sae = sae_of(option, allocator, **changed).train()
    for index in range(20):
        sae.observe(sae(batch_of(index), dead()), Progress((index + 1) * BATCH, 10**6, 1e-3))
    return sae


def codes_of(sae: Architecture, x: Tensor, bias: str = "b_enc") -> tuple[Tensor, Tensor]:
    """Rectified pre-activations where the SAE selects, and the whole rectified matrix."""
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.get_parameter(bias)
    selection = sae(x, dead()).selection
    mask = torch.ones(len(x) * D_SAE, dtype=torch.float64)
    if selection.flat is not None:
        mask = torch.zeros_like(mask).index_fill(0, selection.flat, 1.0)
    return mask.view(len(x), D_SAE) * pre_acts.clamp(min=0), pre_acts.clamp(min=0)


def gradients(sae: Architecture, loss: Tensor) -> dict[str, Tensor]:
    sae.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in sae.named_parameters()}


def assert_same(sae: Architecture, found: Tensor, wanted: Tensor) -> None:
    """The same value and gradients, to 1e-6; where sums cancel, to 1e-7 of the largest."""
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    ours, theirs = gradients(sae, found), gradients(sae, wanted)
    for name in ours:
        atol = 1e-7 * max(theirs[name].abs().max().item(), 0.1)
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=atol, msg=name)


# ---------------------------------------------------------------- values and gradients


@every_allocator
@pytest.mark.parametrize("option", ["relu", "relu_april", "relu_p_anneal"])
@settings(max_examples=20)
@given(seed=st.integers(0, 999), p=st.floats(0.1, 1.0))
def test_penalty_of_relu(option: str, allocator: str, seed: int, p: float) -> None:
    sae = sae_of(option, allocator, seed, l1_coef=0.3, coef_warmup_tokens=0)
    if option == "relu_p_anneal":
        sae.get_buffer("sparsity.p").fill_(p)
    p = sae.get_buffer("sparsity.p").item()
    f, _ = codes_of(sae, batch_of(seed))
    weighted = (f * sae.W_dec.norm(dim=1)) if option == "relu_april" else f
    assume(0 < weighted[weighted > 0].min() > FLOOR)
    wanted = 0.3 * weighted[weighted > 0].pow(p).sum() / BATCH
    assert_same(sae, sae.penalty(sae(batch_of(seed), dead())).double(), wanted)


@every_allocator
@settings(max_examples=20)
@given(seed=st.integers(0, 999), p=st.floats(0.1, 1.0))
@example(827, 0.1015625)  # an element of W_enc's gradient is a thousandth of the largest
def test_penalty_of_gated(allocator: str, seed: int, p: float) -> None:
    sae, x = sae_of("gated_p_anneal", allocator, seed, l1_coef=0.3), batch_of(seed)
    sae.get_buffer("sparsity.p").fill_(p)
    gate, _ = codes_of(sae, x, "b_gate")
    assume(gate[gate > 0].min() > FLOOR)
    aux = x - gate @ sae.W_dec.detach() - sae.b_dec.detach()
    wanted = (0.3 * gate[gate > 0].pow(p).sum() + aux.pow(2).sum()) / BATCH
    assert_same(sae, sae.penalty(sae(x, dead())).double(), wanted)


@pytest.mark.parametrize("p", [0.05, 0.2, 1.0])
def test_slopes_are_finite_however_small_the_activation(p: float) -> None:
    values = torch.tensor([0.0, 1e-45, 1e-38, 1e-12, 0.9 * FLOOR, 1.1 * FLOOR, 0.5, 3.0])
    values.requires_grad_()
    found = power(values, p)
    found.sum().backward()
    assert values.grad is not None
    slopes = values.grad
    assert slopes.isfinite().all() and (slopes > 0).all()
    assert slopes.max() <= FLOOR ** (p - 1) * 1.0001
    assert found[0] == 0 and found.tolist() == sorted(found.tolist())
    torch.testing.assert_close(found[5:], values[5:] ** p)
    torch.testing.assert_close(found[4], torch.tensor(0.9 * FLOOR**p))  # a line that meets f^p


@pytest.mark.parametrize("option", ["relu_april", "relu_p_anneal", "gated_p_anneal"])
def test_gradients_are_finite_where_nothing_is_active(option: str) -> None:
    sae = sae_of(option, l1_coef=0.3)
    sae.get_buffer("sparsity.p").fill_(0.2)
    bias = sae.get_parameter("b_gate" if "gated" in option else "b_enc")
    bias.data.fill_(-100.0)
    x = batch_of(0)
    step = sae(x, dead())
    assert step.acts.l0() == 0
    assert all(g.isfinite().all() for g in gradients(sae, sae.penalty(step)).values())
    sae.observe(step, Progress(4096, 4096, 1e-3))
    assert all(buffer.isfinite().all() for name, buffer in sae.named_buffers() if "log" not in name)


# ---------------------------------------------------------------- the annealing of p


def step_with(values: Tensor) -> Step:
    """A step whose only content is its activations."""
    acts, empty = SparseActs(None, values), torch.zeros(len(values), 1)
    return Step(
        empty,
        pre_acts_of(values),
        Selection(None),
        acts,
        acts,
        empty,
        torch.zeros(D_SAE, 1),
        dead(),
        False,
    )


def annealed(p: float, start: int, end: int, steps: int, coef: float = 0.3) -> SparsityPenalty:
    fixed = Coefficient(coef, 3.0, budgeted=False, warmup_tokens=0)
    return SparsityPenalty(fixed, p, start, end, steps).double()


def observe(penalty: SparsityPenalty, values: Tensor, tokens: int, total: int = 10**6) -> None:
    penalty.observe(lambda: values, step_with(values), Progress(tokens, total, 1e-3))


def values_of(seed: int, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, D_SAE, generator=generator, dtype=torch.float64).clamp(min=0)


@settings(max_examples=40)
@given(
    batch=st.integers(5, 40),
    start=st.integers(0, 100),
    span=st.integers(0, 300),
    steps=st.integers(1, 30),
    last=st.floats(0.1, 0.9),
)
def test_schedule_and_coefficient_of_the_annealing(
    batch: int, start: int, span: int, steps: int, last: float
) -> None:
    """p falls to where its tokens say; lambda by the queue of batches since it last fell."""
    penalty = annealed(last, start, start + span, steps)
    coef, p, queue = 0.3, 1.0, list[Tensor]()
    for index in range(500 // batch):
        values, tokens = values_of(index, batch), (index + 1) * batch
        observe(penalty, values, tokens)
        done = sum(tokens >= start + part * span / steps for part in range(1, steps + 1))
        if span == 0:
            done = steps if tokens > start else 0
        wanted = 1 - (1 - last) * done / steps
        queue = [*queue, values][-BATCHES:] if tokens > start else []
        if wanted != p:
            old, new = (sum(v.clamp(min=1e-99).pow(e).sum() for v in queue) for e in (p, wanted))
            coef, p, queue = float(coef * old / new), wanted, []
        assert penalty.p.item() == pytest.approx(p)
        assert penalty.coefficient.value.item() == pytest.approx(coef, rel=1e-4)
    assert p == pytest.approx(last)


def test_the_penalty_does_not_jump() -> None:
    penalty, values = annealed(0.2, 100, 1100, 10), values_of(0, 20)
    first, seen = penalty(values), set[float]()
    for index in range(60):
        observe(penalty, values, (index + 1) * 20)
        seen.add(round(penalty.p.item(), 6))
        torch.testing.assert_close(penalty(values), first, rtol=1e-5, atol=0)
    assert len(seen) == 11 and min(seen) == 0.2


def test_an_exponent_of_1_leaves_the_coefficient_alone() -> None:
    penalty = annealed(1.0, 0, 100, 5)
    for index in range(10):
        observe(penalty, values_of(index, 20), (index + 1) * 20)
    assert penalty.coefficient.value.item() == pytest.approx(0.3)
    assert penalty.diagnostics().keys() == {"train/l1_coef"}


def test_silent_batches_and_a_weight_of_0_survive_the_annealing() -> None:
    for coef, values in ((0.3, torch.zeros(20, D_SAE)), (0.0, values_of(0, 20))):
        penalty = annealed(0.5, 0, 100, 5, coef)
        for index in range(8):
            observe(penalty, values, (index + 1) * 20)
        assert penalty.p.item() == 0.5
        assert penalty.coefficient.value.item() == pytest.approx(coef)


def test_annealing_and_steering_go_on_from_their_state() -> None:
    def go(penalty: SparsityPenalty, first: int, last: int) -> None:
        for index in range(first, last):
            observe(penalty, values_of(index, 20), (index + 1) * 20, total=1000)

    def made() -> SparsityPenalty:
        coefficient = Coefficient("auto", 3.0, budgeted=False, warmup_tokens=150)
        return SparsityPenalty(coefficient, 0.2, 200, 700, 3)

    for stop in (5, 13, 17, 30):
        whole, first, second = made(), made(), made()
        go(whole, 0, 45)
        go(first, 0, stop)
        second.load_state_dict(first.state_dict())
        go(second, stop, 45)
        for name, tensor in whole.state_dict().items():
            assert tensor.equal(second.state_dict()[name]), name
    assert whole.p.item() == pytest.approx(0.2)


def test_a_weight_rises_linearly_and_is_not_steered_while_it_does() -> None:
    for coef in (0.5, "auto"):
        coefficient = Coefficient(coef, 2.0, budgeted=False, warmup_tokens=200)
        full = coefficient.log_value.exp().item()
        for tokens in range(0, 201, 20):
            assert coefficient.value.item() == pytest.approx(full * tokens / 200)
            step = step_with(values_of(tokens, 20))
            coefficient.observe(step, Progress(tokens + 20, 4000, 1e-3))
        assert (coefficient.value.item() == pytest.approx(full)) == (coef == 0.5)
    at_once = Coefficient(0.5, 2.0, budgeted=False, warmup_tokens=0)
    assert at_once.value.item() == pytest.approx(0.5)


@pytest.mark.parametrize("option", ["relu_april", "gated_p_anneal"])
def test_an_sae_anneals_by_the_activations_that_it_penalises(option: str) -> None:
    annealing: dict[str, Any] = {
        "p": 0.5,
        "p_steps": 1,
        "p_start_tokens": 0,
        "p_end_tokens": 3 * BATCH,
    }
    sae = sae_of(option, l1_coef=0.3, coef_warmup_tokens=0, **annealing)
    for index in range(1, 4):
        step = sae(batch_of(index), dead())
        sae.observe(step, Progress(index * BATCH, 4096, 1e-3))
        if index < 3:
            assert sae.diagnostics()["train/p"] == 1
    assert sae.diagnostics()["train/p"] == 0.5
    ratio = [0.0, 0.0]
    for index in range(1, 4):
        f, _ = codes_of(sae, batch_of(index), "b_gate" if "gated" in option else "b_enc")
        f = f if "gated" in option else f * sae.W_dec.norm(dim=1)
        ratio = [ratio[0] + f.sum().item(), ratio[1] + f[f > 0].sqrt().sum().item()]
    wanted = 0.3 * ratio[0] / ratio[1]
    assert sae.diagnostics()["train/l1_coef"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(
    ("option", "coef"),
    [
        ("relu", "l1_coef"),
        ("relu_april", "l1_coef"),
        ("gated", "l1_coef"),
        ("jumprelu", "l0_coef"),
        ("jumprelu_l0", "l0_coef"),
    ],
)
def test_a_penalty_rises_with_its_weight(option: str, coef: str) -> None:
    given: dict[str, Any] = {coef: 0.3}
    sae, x = sae_of(option, coef_warmup_tokens=4096, **given), batch_of(3)
    step = sae(x, dead())
    whole = sae_of(option, coef_warmup_tokens=0, **given).penalty(step).item()
    none = sae.penalty(step).item()
    assert none == 0 or option == "gated"  # whose auxiliary loss has no weight
    sae.observe(step, Progress(1024, 4096, 1e-3))
    assert sae.penalty(step).item() - none == pytest.approx((whole - none) / 4)
    assert sae.diagnostics()[f"train/{coef}"] == pytest.approx(0.3 / 4)


# ---------------------------------------------------------------- free norms (April 2024)


def moved(sae: Architecture, factors: Tensor) -> None:
    """Replace (f_i, d_i) by (c_i f_i, d_i / c_i)."""
    sae.W_enc.data *= factors
    sae.get_parameter("b_enc").data *= factors
    sae.W_dec.data /= factors[:, None]


@every_allocator
@settings(max_examples=10)
@given(logs=st.lists(st.floats(-3, 3), min_size=D_SAE, max_size=D_SAE))
def test_norms_may_move_between_encoder_and_decoder(allocator: str, logs: list[float]) -> None:
    sae, x = trained("relu_april", allocator, l1_coef=0.3), batch_of(99)
    ranked = list[Tensor]()
    sae.allocator.register_forward_pre_hook(lambda _, given: ranked.append(given[0].values))
    before = {mode: sae.train(mode)(x, dead()) for mode in (True, False)}
    loss = sae.penalty(before[True]).item()
    assert loss > 0
    moved(sae, torch.tensor(logs, dtype=torch.float64).exp())
    for (mode, old), affinities in zip(before.items(), tuple(ranked), strict=True):
        step = sae.train(mode)(x, dead())
        torch.testing.assert_close(step.recon, old.recon)
        torch.testing.assert_close(ranked[-1], affinities)
        assert step.acts.active.equal(old.acts.active)
    assert sae.penalty(sae.train()(x, dead())).item() == pytest.approx(loss, rel=1e-5)


@every_allocator
def test_saelens_gets_unit_norms_and_the_same_reconstructions(allocator: str) -> None:
    sae, x = trained("relu_april", allocator).eval(), batch_of(66, 300)
    weights, step = sae.saelens(), sae(x, dead())
    assert weights is not None
    t = weights.tensors
    assert not any(tensor.requires_grad for tensor in t.values())
    torch.testing.assert_close(t["W_dec"].norm(dim=1), torch.ones(D_SAE, dtype=torch.float64))
    pre_acts = (x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]
    codes = pre_acts.relu()
    if allocator == "token":
        top = pre_acts.topk(weights.cfg["k"], dim=1)
        codes = torch.zeros_like(codes).scatter(1, top.indices, top.values.relu())
    if allocator == "mutual":
        codes = codes * (pre_acts > t["threshold"])
    expected = {"none": "standard", "token": "topk", "mutual": "jumprelu"}
    assert weights.architecture == expected[allocator]
    torch.testing.assert_close(codes, step.acts.dense() * sae.W_dec.norm(dim=1))
    torch.testing.assert_close(codes @ t["W_dec"] + t["b_dec"], step.recon)


def test_a_row_without_length_is_no_trouble() -> None:
    sae = sae_of("relu_april", l1_coef=0.3)
    sae.W_dec.data[3] = 0.0
    step = sae(batch_of(1), dead())
    assert all(g.isfinite().all() for g in gradients(sae, sae.penalty(step)).values())
    weights = sae.saelens()
    assert weights is not None
    assert all(tensor.isfinite().all() for tensor in weights.tensors.values())


# ---------------------------------------------------------------- nested groups


@given(
    parts=st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=8),
    extra=st.integers(0, 60),
)
def test_group_ends(parts: list[float], extra: int) -> None:
    d_sae, fractions = len(parts) + extra, [part / sum(parts) for part in parts]
    ends = group_ends(fractions, d_sae)
    assert len(ends) == len(parts) and ends[-1] == d_sae
    assert all(after > before for before, after in pairwise([0, *ends]))
    exact = [round(math.fsum(fractions[: i + 1]) * d_sae) for i in range(len(parts))]
    if all(after > before for before, after in pairwise([0, *exact])):
        assert ends == exact  # only empty groups move an end


def test_golden_group_ends() -> None:
    assert group_ends([0.03125, 0.0625, 0.125, 0.25, 0.53125], 64) == [2, 6, 14, 30, 64]
    assert group_ends([0.03125, 0.0625, 0.125, 0.25, 0.53125], 6) == [1, 2, 3, 4, 6]
    assert group_ends([0.998, 0.001, 0.001], 4) == [2, 3, 4]


FRACTIONS = [0.1, 0.2, 0.3, 0.4]
ENDS = [1, 4, 8, 14]


@every_allocator
@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_matryoshka_is_the_sum_over_prefixes(allocator: str, seed: int) -> None:
    x = batch_of(seed)
    sae = sae_of("matryoshka", allocator, seed, fractions=FRACTIONS, l1_coef=0.3)
    f, _ = codes_of(sae, x)
    wanted = 0.3 * f.sum() / BATCH
    for end in ENDS:
        recon = f[:, :end] @ sae.W_dec[:end] + sae.b_dec
        wanted = wanted + (x - recon).pow(2).sum() / BATCH
    step = sae(x, dead())
    error = (x - step.recon).pow(2).sum() / BATCH  # the trainer's
    assert_same(sae, error + sae.penalty(step), wanted)


def test_prefixes_are_the_same_listed_or_dense() -> None:
    f, W_dec = values_of(0, 9), values_of(1, D_SAE)[:, :D_IN]
    flat = f.flatten().nonzero().squeeze(1)
    listed, dense = Selection(flat).of(f), SparseActs(None, f)
    borders = torch.tensor(ENDS)
    found = prefix_recons(listed, W_dec, ENDS, borders)
    torch.testing.assert_close(found, prefix_recons(dense, W_dec, ENDS, borders))
    for index, end in enumerate(ENDS):
        torch.testing.assert_close(found[:, index], f[:, :end] @ W_dec[:end])


@every_allocator
def test_one_group_is_relu(allocator: str) -> None:
    x = batch_of(7)
    one = sae_of("matryoshka", allocator, fractions=[1.0], l1_coef=0.3)
    relu = sae_of("relu", allocator, l1_coef=0.3)
    ours, theirs = one(x, dead()), relu(x, dead())
    assert ours.recon.equal(theirs.recon)
    assert one.penalty(ours).equal(relu.penalty(theirs))


# ---------------------------------------------------------------- what options may be

REFUSED = {
    "architecture.fractions is [0.5, 0.4], expected positive numbers that sum to 1.": [
        "architecture=matryoshka",
        "architecture.fractions=[0.5,0.4]",
    ],
    "architecture.fractions is [1.5, -0.5], expected positive numbers that sum to 1.": [
        "architecture=matryoshka",
        "architecture.fractions=[1.5,-0.5]",
    ],
    "architecture.fractions is [], expected positive numbers that sum to 1.": [
        "architecture=matryoshka",
        "architecture.fractions=[]",
    ],
    "architecture.fractions has 4 parts, expected at most d_sae of them.": [
        "architecture=matryoshka",
        "architecture.fractions=[0.25,0.25,0.25,0.25]",
        "d_sae=3",
        "k=1",
    ],
    "architecture.p is 0, expected more than 0 and at most 1.": ["architecture.p=0"],
    "architecture.p is 1.5, expected more than 0 and at most 1.": ["architecture.p=1.5"],
    "architecture.p_steps is 0, expected at least 1.": ["architecture.p_steps=0"],
    "architecture.p_start_tokens is -1, expected at least 0.": ["architecture.p_start_tokens=-1"],
    "architecture.p_start_tokens is 3000, expected at most architecture.p_end_tokens, which is "
    "2000.": ["architecture.p_start_tokens=3000", "architecture.p_end_tokens=2000"],
    "architecture.p_end_tokens is 5000, expected at most training.tokens, which is 4096.": [
        "architecture.p_end_tokens=5000"
    ],
    "architecture.coef_warmup_tokens is -1, expected at least 0.": [
        "architecture.coef_warmup_tokens=-1"
    ],
    "architecture.coef_warmup_tokens is 5000, expected at most training.tokens, which is 4096.": [
        "architecture=jumprelu_l0",
        "architecture.coef_warmup_tokens=5000",
    ],
}


@pytest.mark.parametrize("complaint", REFUSED)
def test_options_out_of_range_are_refused(complaint: str) -> None:
    with pytest.raises(ConfigError) as error:
        obey(small_run(Path(), *REFUSED[complaint], "aux_loss=none").config.tree)
    assert str(error.value) == complaint


@pytest.mark.parametrize("share", [0.1, 0.7])
def test_fractions_need_sum_to_1_only_up_to_rounding(share: float) -> None:
    parts = f"architecture.fractions=[{share},{1 - share + 5e-7}]"
    obey(small_run(Path(), "architecture=matryoshka", parts, "aux_loss=none").config.tree)


# ---------------------------------------------------------------- one feature, trained for real

MAGNITUDES = torch.tensor([0.0, 0.2, 0.6, 1.0, 2.0])
STEPS = 300


def toy(option: str, x: Tensor = MAGNITUDES, **changed: Any) -> tuple[Architecture, Tensor]:
    """One latent trained on a lone feature of these magnitudes, and what it adds at each.

    The decoder's bias is kept at 0; it could take over a part.
    """
    node = node_of(option) | {"coef_warmup_tokens": 0, "encoder_scale": 1.0} | changed
    sae: Architecture = build(node, 3, 1, NoAllocator(1))
    sae.initialise(torch.Generator().manual_seed(0), torch.zeros(3))
    sae.b_dec.requires_grad_(False)
    direction = torch.tensor([2.0, -1.0, 2.0]) / 3
    sae.W_dec.data = (direction + torch.tensor([0.2, 0.1, -0.2]))[None]
    sae.W_dec.data /= sae.W_dec.data.norm()
    sae.W_enc.data = sae.W_dec.data.T.clone()
    batch = x[:, None] * direction
    training = options.TrainingOptions(
        tokens=STEPS * len(x),
        gradient_clip_norm=1.0,
        dead_window_tokens=10**6,
        log_every_tokens=10**6,
        precision="float32",
    )
    parts = sae, NoAux(3, 1), NoResampling(3, 1), training
    trainer = trainer_of(*parts, decay_tokens=STEPS * len(x) // 2, adam={"lr": 2e-2})
    with unchecked():
        for _ in range(STEPS):
            trainer.step(batch, wanted=False)
    norm = sae.W_dec.norm()
    assert (sae.W_dec[0] @ direction / norm).item() == pytest.approx(1, abs=1e-3)
    acts = sae.eval()(batch, torch.zeros(1, dtype=torch.bool)).acts.dense()[:, 0]
    return sae, (acts * norm).detach()


@pytest.mark.parametrize("option", ["relu", "relu_april"])
@pytest.mark.parametrize("c", [0.1, 0.8])
def test_an_l1_penalty_takes_half_its_weight_off_an_activation(option: str, c: float) -> None:
    """(v - a)^2 + c a is least at a = max(0, v - c / 2)."""
    sae, found = toy(option, l1_coef=c)
    torch.testing.assert_close(found, (MAGNITUDES - c / 2).clamp(min=0), atol=5e-3, rtol=0)
    assert (sae.W_dec.norm().item() == pytest.approx(1, abs=1e-5)) == (option == "relu")


def test_gated_activations_are_not_shrunk() -> None:
    """Its gate is, so it opens above c / 2."""
    _, found = toy("gated", l1_coef=0.8)
    wanted = MAGNITUDES * (MAGNITUDES > 0.4)
    torch.testing.assert_close(found, wanted, atol=5e-3, rtol=0)


def test_jumprelu_activations_are_not_shrunk_above_the_best_threshold() -> None:
    """To drop v costs v^2, to keep it l0_coef: the threshold is best at l0_coef^(1/2)."""
    magnitudes = torch.linspace(0.0, 1.0, 100)
    sae, found = toy("jumprelu_l0", magnitudes, l0_coef=0.16, bandwidth=0.1, initial_threshold=0.25)
    threshold = sae.get_parameter("log_threshold").exp().item()
    assert threshold == pytest.approx(0.4, abs=0.03)
    torch.testing.assert_close(found, magnitudes * (magnitudes > threshold), atol=5e-3, rtol=0)
