"""aux_k and aux_zipf against a naive reference: value, gradients, and what must not happen."""

import copy
import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.allocator.none import NoAllocator
from sae_sweeps.allocator.token_choice import TokenChoice
from sae_sweeps.aux_loss.aux_k import AuxK
from sae_sweeps.aux_loss.aux_zipf import AuxZipf, underuse
from sae_sweeps.aux_loss.none import NoAux
from sae_sweeps.config import options
from sae_sweeps.config.signature import build
from sae_sweeps.engine.acts import Selection, SparseActs
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.pre_acts import Piece, PreActs
from sae_sweeps.interfaces import Allocator, Architecture, AuxLoss, Progress, Step
from sae_sweeps.resampling.none import NoResampling
from tests.support.places import CONF
from tests.support.small import pre_acts_of, small_run, trainer_of

torch.set_num_threads(1)

D_IN, D_SAE = 4, 11


@cache
def node_of(group: str, *overrides: str) -> dict[str, Any]:
    return small_run(Path(), *overrides).config.tree[group]


def built(architecture: str, allocator: Allocator, d_sae: int, seed: int) -> Architecture:
    """An SAE in float64 with nothing at zero, about a third of its entries negative."""
    node = node_of("architecture", f"architecture={architecture}")
    sae: Architecture = build(node, D_IN, d_sae, allocator)
    return filled(sae.double(), seed)


def sae_of(budgeted: bool, seed: int = 0) -> Architecture:
    allocator = TokenChoice(D_SAE, k=2) if budgeted else NoAllocator(D_SAE)
    return built("relu", allocator, D_SAE, seed)


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
    weight: Sequence[float],
    k_aux: int,
    coef: float,
    rectify: bool,
) -> Tensor:
    """The loss of latents with a `weight` each; aux_k's are 1 where dead, else 0."""
    pre_acts = (x - sae.b_dec) @ sae.W_enc + sae.get_parameter("b_enc")
    residual = (x - recon).detach()
    error = torch.zeros((), dtype=x.dtype)
    for token in range(len(x)):
        ranked = sorted(
            (-weight[i] * pre_acts[token, i].item(), i) for i in range(D_SAE) if weight[i]
        )
        e_hat = torch.zeros(D_IN, dtype=x.dtype)
        for _, latent in ranked[:k_aux]:
            value = weight[latent] * pre_acts[token, latent]
            e_hat = e_hat + (value.clamp(min=0) if rectify else value) * sae.W_dec[latent]
        error = error + ((residual[token] - e_hat) ** 2).sum()
    return coef * error / ((residual - residual.mean(0)) ** 2).sum()


@contextmanager
def reading(in_pieces: bool) -> Generator[list[int]]:
    """Read matrices in pieces of a few tokens, or whole; into how many pieces each came is told."""
    counts, pieces = list[int](), PreActs.pieces

    def watched(pre_acts: PreActs, by_latent: bool = False) -> Iterator[Piece]:
        found = list(pieces(pre_acts, by_latent))
        counts.append(len(found))
        return iter(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sae_sweeps.engine.pre_acts.PIECE", 4 if in_pieces else 2**22)
        patch.setattr("sae_sweeps.engine.pre_acts.TOKENS", 2)
        patch.setattr(PreActs, "pieces", watched)
        yield counts


def gradients(sae: Architecture, loss: Tensor, retain: bool = False) -> dict[str, Tensor]:
    sae.zero_grad()
    loss.backward(retain_graph=retain)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in sae.named_parameters()}


@given(
    seed=st.integers(0, 999),
    batch=st.integers(2, 9),
    k_aux=st.integers(1, D_SAE),
    dead=st.lists(st.booleans(), min_size=D_SAE, max_size=D_SAE).filter(any),
    budgeted=st.booleans(),
    in_pieces=st.booleans(),
)
def test_value_and_gradients(
    seed: int, batch: int, k_aux: int, dead: list[bool], budgeted: bool, in_pieces: bool
) -> None:
    sae, x, mask = sae_of(budgeted, seed), batch_of(seed, batch), torch.tensor(dead)
    with reading(in_pieces):
        step = sae(x, mask)
        loss = AuxK(D_IN, D_SAE, coef=0.07, k_aux=k_aux)(step)
    reference = naive(sae, x, step.recon, list(map(float, dead)), k_aux, 0.07, budgeted)
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
    sae = built(kind, NoAllocator(D_SAE), D_SAE, seed=4)
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


AUX_LOSSES: dict[str, Callable[[], AuxLoss]] = {
    "aux_k": lambda: AuxK(D_IN, D_SAE, coef=1.0, k_aux=2),
    "aux_zipf": lambda: observing(aux_zipf(k_aux=2), DENSITIES),
}
every_aux_loss = pytest.mark.parametrize("name", AUX_LOSSES)


@every_aux_loss
@pytest.mark.parametrize("case", ["one token", "equal tokens", "perfect"])
@pytest.mark.parametrize("budgeted", [True, False])
def test_a_residual_without_variance_gives_a_finite_loss_and_finite_gradients(
    name: str, case: str, budgeted: bool
) -> None:
    sae, x = constant_residual(case, budgeted)
    loss = AUX_LOSSES[name]()(sae(x, torch.ones(D_SAE, dtype=torch.bool)))
    assert loss.isfinite()
    found = gradients(sae, loss)
    for parameter, gradient in found.items():
        assert gradient.isfinite().all(), parameter
    if case == "one token":
        assert loss == 0 and not any(gradient.any() for gradient in found.values())


@every_aux_loss
@pytest.mark.parametrize("budgeted", [True, False])
def test_read_whole_in_pieces_or_ranked_by_topk_it_is_the_same(
    name: str, budgeted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae, x, dead = sae_of(budgeted), batch_of(6, 33), torch.arange(D_SAE) % 2 == 0
    found = list[dict[str, Tensor]]()
    for listed, in_pieces, expected in ((True, False, [1]), (True, True, [17]), (False, True, [])):
        step = sae(x, dead)
        with monkeypatch.context() as patch, reading(in_pieces) as counts:
            patch.setattr(Affinities, "listed", listed)  # as on accelerators where it is not
            loss = AUX_LOSSES[name]()(step)
        assert counts == expected
        assert loss > 0
        found.append({"loss": loss.detach()} | copy.deepcopy(gradients(sae, loss)))
    assert found[0]["W_enc"].any()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-6, atol=1e-9)


# ---------------------------------------------------------------- aux_zipf

DENSITIES = [0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.3, 0.01, 0.02, 0.04, 0.01]
"""Of the latents in order; some are as they should be, some underused, some equal."""


def aux_zipf(**changed: Any) -> AuxZipf:
    given_options: dict[str, Any] = {
        "coef": 0.07,
        "k_aux": None,
        "tau": 0.8,
        "exponent": 1.0,
        "shift": 0.0,
        "target_l0": 2.0,
        "horizon_tokens": 150,
    }
    return AuxZipf(D_IN, D_SAE, **given_options | changed).double()


def firing(densities: Sequence[float], tokens: int = 100) -> Step:
    """A step in which latents fire on these shares of the tokens; nothing else of it is used."""
    times = torch.tensor([round(density * tokens) for density in densities])
    acts = (torch.arange(tokens)[:, None] < times).double()
    none, d_sae = torch.zeros(tokens, 1, dtype=torch.float64), len(densities)
    dead, W_dec = torch.zeros(d_sae, dtype=torch.bool), torch.zeros(d_sae, 1).double()
    sparse = SparseActs(None, acts)
    return Step(none, pre_acts_of(acts), Selection(None), sparse, sparse, none, W_dec, dead, True)


def observing(aux_loss: AuxZipf, densities: Sequence[float], tokens: int = 100) -> AuxZipf:
    aux_loss.observe(firing(densities, tokens), Progress(tokens, 10**6, 1e-3))
    return aux_loss


def naive_underuse(
    density: Sequence[float], l0: float, dead: Sequence[bool], tau: float, s: float, q: float
) -> list[float]:
    weights = [1.0] * len(density)
    total = sum((rank + q) ** -s for rank in range(1, len(density) + 1))
    order = sorted(range(len(density)), key=lambda i: (-density[i], i))
    for rank, latent in enumerate(order, start=1):
        expected = min(1.0, l0 * (rank + q) ** -s / total)
        if not dead[latent]:
            weights[latent] = min(1.0, max(0.0, 1 - density[latent] / expected / tau))
    return weights


@pytest.mark.parametrize(
    ("tau", "expected"),
    [
        (0.5, [0, 0, 0, 0, 0, 0.680, 0.888, 0.957, 0.995, 1, 1, 1]),
        (0.1, [0, 0, 0, 0, 0, 0, 0.440, 0.787, 0.976, 1, 1, 1]),
        (1e-6, [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),
    ],
)
def test_golden_underuse(tau: float, expected: list[float]) -> None:
    density = torch.tensor([0.5, 0.3, 0.2, 0.1, 0.05, 0.01, 0.003, 0.001, 1e-4, 0, 0, 0])
    for dead in (density == 0, torch.zeros(12, dtype=torch.bool)):
        found = underuse(density, density.sum(), dead, tau, 1.0, 0.0)
        torch.testing.assert_close(found, torch.tensor(expected).float(), atol=6e-4, rtol=0)


@given(
    density=st.lists(
        st.sampled_from([0.0, 1e-4, 0.01, 0.02, 0.1, 0.5, 1.0]), min_size=1, max_size=9
    ),
    share=st.floats(0, 1),
    tau=st.floats(1e-3, 3),
    exponent=st.floats(0, 3),
    shift=st.floats(0, 9),
    data=st.data(),
)
def test_underuse(
    density: list[float],
    share: float,
    tau: float,
    exponent: float,
    shift: float,
    data: st.DataObject,
) -> None:
    size = len(density)
    l0 = max(share * size, 1e-3)
    dead = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    found = underuse(
        torch.tensor(density, dtype=torch.float64),
        torch.tensor(l0, dtype=torch.float64),
        torch.tensor(dead),
        tau,
        exponent,
        shift,
    )
    expected = naive_underuse(density, l0, dead, tau, exponent, shift)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_where_nothing_fires_every_latent_is_underused() -> None:
    silent, alive = torch.zeros(3), torch.zeros(3, dtype=torch.bool)
    assert underuse(silent, torch.tensor(0.0), alive, 0.1, 1.0, 0.0).tolist() == [1, 1, 1]
    assert underuse(silent, torch.tensor(2.0), alive, 0.1, 1.0, 0.0).tolist() == [1, 1, 1]


@given(
    seed=st.integers(0, 999),
    batch=st.integers(2, 9),
    k_aux=st.integers(1, D_SAE + 3),
    dead=st.lists(st.booleans(), min_size=D_SAE, max_size=D_SAE),
    budgeted=st.booleans(),
    tau=st.sampled_from([0.1, 0.5, 2.0]),
    exponent=st.sampled_from([0.0, 1.0, 1.5]),
    shift=st.sampled_from([0.0, 4.0]),
    in_pieces=st.booleans(),
)
def test_value_and_gradients_of_aux_zipf(
    seed: int,
    batch: int,
    k_aux: int,
    dead: list[bool],
    budgeted: bool,
    tau: float,
    exponent: float,
    shift: float,
    in_pieces: bool,
) -> None:
    sae, x = sae_of(budgeted, seed), batch_of(seed, batch)
    given_options = {"k_aux": k_aux, "tau": tau, "exponent": exponent, "shift": shift}
    aux_loss = observing(aux_zipf(**given_options), DENSITIES)
    l0 = 2.0 if budgeted else sum(DENSITIES)
    weight = naive_underuse(DENSITIES, l0, dead, tau, exponent, shift)
    with reading(in_pieces):
        step = sae(x, torch.tensor(dead))
        loss = aux_loss(step)
    reference = naive(sae, x, step.recon, weight, k_aux, 0.07, budgeted)
    if not any(weight):
        assert (loss.item(), loss.requires_grad) == (0, False)
        return
    torch.testing.assert_close(loss, reference, rtol=1e-6, atol=1e-9)
    wanted = gradients(sae, reference)
    for name, gradient in gradients(sae, loss).items():
        torch.testing.assert_close(
            gradient, wanted[name], rtol=1e-6, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )


def option_files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("architecture", option_files("architecture"))
@pytest.mark.parametrize("allocator", option_files("allocator"))
def test_as_tau_goes_to_0_it_is_aux_k(architecture: str, allocator: str) -> None:
    d_sae, generator = 64, torch.Generator().manual_seed(0)
    chosen: Allocator = build(node_of("allocator", f"allocator={allocator}"), d_sae)
    sae = built(architecture, chosen, d_sae, seed=1)
    dead = torch.rand(d_sae, generator=generator) < 0.2
    density = torch.rand(d_sae, generator=generator).clamp(min=0.01).tolist()  # the dead's too
    density[3:9] = [0.01] * 6  # underused
    step = sae(batch_of(0, 12), dead)
    runtime: dict[str, Any] = {"coef": 0.3, "k_aux": 7, "exponent": 1.0, "shift": 0.0}
    runtime |= {"target_l0": 4.0, "horizon_tokens": 100}
    for budgeted in (True, False):
        seen = replace(step, budgeted=budgeted)
        expected = gradients(sae, one := AuxK(D_IN, d_sae, coef=0.3, k_aux=7)(seen), retain=True)
        assert one > 0
        for tau in (1e-12, 2.0):
            aux_loss = observing(AuxZipf(D_IN, d_sae, tau=tau, **runtime).double(), density)
            found = gradients(sae, other := aux_loss(seen), retain=True)
            same = [torch.equal(found[name], expected[name]) for name in expected]
            assert torch.equal(one, other) == all(same) == (tau < 1)


def test_before_the_first_observation_only_dead_latents_count() -> None:
    sae, dead = sae_of(True), torch.arange(D_SAE) % 3 == 0
    step = sae(batch_of(0, 6), dead)
    aux_loss, aux_k = aux_zipf(tau=100.0), AuxK(D_IN, D_SAE, coef=0.07, k_aux=None)
    assert torch.equal(aux_loss(step), aux_k(step))
    observing(aux_loss, DENSITIES)
    assert not torch.equal(aux_loss(step), aux_k(step))


def test_densities_are_averages_whose_bias_is_corrected() -> None:
    sae, aux_loss = sae_of(True), aux_zipf(horizon_tokens=150)
    step = sae(batch_of(0, 6), torch.zeros(D_SAE, dtype=torch.bool))
    total, weight = [0.0] * D_SAE, 0.0
    for tokens, shift in ((100, 0), (50, 3), (200, 5)):
        seen = DENSITIES[shift:] + DENSITIES[:shift]
        observing(aux_loss, seen, tokens)
        keep = math.exp(-tokens / 150)
        shares = [round(density * tokens) / tokens for density in seen]
        total = [keep * old + (1 - keep) * new for old, new in zip(total, shares, strict=True)]
        weight = keep * weight + 1 - keep
        density = [entry / weight for entry in total]
        lack = naive_underuse(density, 2.0, [False] * D_SAE, 0.8, 1.0, 0.0)
        expected = naive(sae, step.x, step.recon, lack, D_IN // 2, 0.07, True)
        torch.testing.assert_close(aux_loss(step), expected, rtol=1e-6, atol=1e-9)


def test_only_underused_latents_get_a_gradient() -> None:
    sae = sae_of(False)
    aux_loss = observing(aux_zipf(k_aux=D_SAE, tau=0.2), DENSITIES)
    found = gradients(sae, aux_loss(sae(batch_of(1, 6), torch.zeros(D_SAE, dtype=torch.bool))))
    lack = naive_underuse(DENSITIES, sum(DENSITIES), [False] * D_SAE, 0.2, 1.0, 0.0)
    underused = torch.tensor(lack) > 0
    assert 0 < underused.sum() < D_SAE
    assert torch.equal(found["W_enc"].any(0), underused)
    assert torch.equal(found["W_dec"].any(1), underused)
    assert torch.equal(found["b_enc"] != 0, underused)


def test_equal_latents_beyond_k_aux_are_interchangeable() -> None:
    sae, dead = sae_of(False), torch.ones(D_SAE, dtype=torch.bool)
    for parameter in (sae.W_enc.data.T, sae.W_dec.data, sae.get_parameter("b_enc").data):
        parameter[:] = parameter[:1].clone()
    step = sae(batch_of(1, 6), dead)
    loss = observing(aux_zipf(k_aux=3), DENSITIES)(step)
    expected = naive(sae, step.x, step.recon, [1.0] * D_SAE, 3, 0.07, False)
    torch.testing.assert_close(loss, expected)


def test_state_is_in_buffers_and_choosing_changes_none() -> None:
    step = sae_of(True)(batch_of(0, 6), torch.zeros(D_SAE, dtype=torch.bool))
    one, other = observing(aux_zipf(), DENSITIES), aux_zipf()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for aux_loss in (one, other):
        aux_loss(step)
        observing(aux_loss, DENSITIES[::-1])
    assert torch.equal(one(step), other(step)) and one(step) > 0


def test_the_trainer_lets_it_observe() -> None:
    aux_loss = aux_zipf(tau=5.0)
    training = options.TrainingOptions(**node_of("training"))
    trainer = trainer_of(sae_of(True), aux_loss, NoResampling(D_IN, D_SAE), training)
    losses = [
        trainer.step(batch_of(index, 10), wanted=True)["train/aux_loss"] for index in range(2)
    ]
    assert losses[0] == 0 and losses[1] > 0
