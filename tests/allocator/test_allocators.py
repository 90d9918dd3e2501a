"""Allocators against brute force and naive references; their state and thresholds."""

import copy
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.allocator import feature_choice as by_latent
from sae_sweeps.allocator import mutual_choice as of_batch
from sae_sweeps.allocator.feature_choice import FeatureChoice
from sae_sweeps.allocator.mutual_choice import MutualChoice
from sae_sweeps.allocator.none import NoAllocator
from sae_sweeps.allocator.thresholds import LearntThreshold
from sae_sweeps.allocator.token_choice import TokenChoice
from sae_sweeps.engine.acts import Selection
from sae_sweeps.engine.averages import TokenAverage
from sae_sweeps.engine.zipf import zipf_budgets
from sae_sweeps.interfaces import Allocator, Progress, Step
from tests.support.small import affinities_of
from tests.support.unchecked import unchecked

torch.set_num_threads(1)

D_SAE = 30
BATCH = 16


def feature(
    k: float,
    mutual_tokens: int,
    horizon_tokens: int = 100,
    rounding: Literal["largest_remainder", "stochastic"] = "largest_remainder",
    seed: int = 0,
) -> FeatureChoice:
    return FeatureChoice(
        D_SAE,
        k=k,
        exponent=1.0,
        shift=5.0,
        mutual_tokens=mutual_tokens,
        horizon_tokens=horizon_tokens,
        rounding=rounding,
        seed=seed,
    )


MAKERS: dict[str, Callable[[], Allocator]] = {
    "none": lambda: NoAllocator(D_SAE),
    "token": lambda: TokenChoice(D_SAE, k=3),
    "mutual": lambda: MutualChoice(D_SAE, k=2.7, horizon_tokens=100),
    "feature": lambda: feature(2.7, 0),
    "mutual then feature": lambda: feature(2.7, 5 * BATCH),
    "feature, drawn": lambda: feature(2.7, 0, rounding="stochastic"),
    "mutual then feature, drawn": lambda: feature(2.7, 5 * BATCH, rounding="stochastic"),
}
every_allocator = pytest.mark.parametrize("name", MAKERS)
learns_thresholds = pytest.mark.parametrize(
    "name", [name for name in MAKERS if name not in ("none", "token")]
)


def choice(allocator: Allocator, affinities: Tensor) -> Selection:
    return allocator(affinities_of(affinities))


def step_of(allocator: Allocator, affinities: Tensor) -> Step:
    """What an architecture whose activations are its rectified affinities would record."""
    batch, d_sae = affinities.shape
    ranked = affinities_of(affinities)
    selection = allocator(ranked)
    none = torch.zeros(batch, 1)
    dead = torch.zeros(d_sae, dtype=torch.bool)
    acts = selection.of(affinities).relu()
    return Step(
        none,
        ranked.pre_acts,
        selection,
        acts,
        acts,
        none,
        torch.zeros(d_sae, 1),
        dead,
        True,
    )


def l0_of(allocator: Allocator, affinities: Tensor, batch: int) -> float:
    """Mean active latents per token, in batches."""
    parts = (step_of(allocator, part) for part in affinities.split(batch))
    return sum(part.acts.tokens_per_latent.sum().item() for part in parts) / len(affinities)


def batch_of(seed: int, batch: int = BATCH, d_sae: int = D_SAE) -> Tensor:
    """Affinities without ties of latents that differ in scale; two in five are positive."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.3, 2.0, d_sae)
    return (torch.randn(batch, d_sae, generator=generator) - 0.25) * scale


def train(allocator: Allocator, steps: int, start: int = 0, batch: int = BATCH) -> Allocator:
    for index in range(start, start + steps):
        step = step_of(allocator.train(), batch_of(index, batch))
        allocator.observe(step, Progress((index + 1) * batch, 10**6, 1e-3))
    return allocator


def mask_of(selection: Selection, shape: tuple[int, ...]) -> Tensor:
    if selection.flat is None:
        return torch.ones(shape, dtype=torch.bool)
    return (
        torch.zeros(shape, dtype=torch.bool)
        .flatten()
        .index_fill(0, selection.flat, True)
        .view(shape)
    )


# ---------------------------------------------------------------- the three choices


def token_choice(affinities: Tensor, k: int) -> Tensor:
    return flat_of(affinities_of(affinities).largest_of_tokens(k))


def mutual_choice(
    affinities: Tensor, budget: int, threshold: LearntThreshold | None = None
) -> Tensor:
    return flat_of(of_batch.mutual_choice(affinities_of(affinities), budget, threshold))


def feature_choice(
    affinities: Tensor, budgets: Tensor, threshold: LearntThreshold | None = None
) -> Tensor:
    return flat_of(by_latent.feature_choice(affinities_of(affinities), budgets, threshold))


def flat_of(selection: Selection) -> Tensor:
    assert selection.flat is not None
    return selection.flat


def threshold_of(*values: float) -> LearntThreshold:
    """Learnt thresholds with these values, one or one per latent."""
    threshold, known = LearntThreshold(len(values), 1), torch.tensor(values)
    threshold.smallest.update(known.nan_to_num(posinf=0.0), known.isfinite(), 10**6)
    assert torch.equal(threshold.value(), known)
    return threshold


@st.composite
def matrices(draw: st.DrawFn) -> Tensor:
    """Small matrices, full of ties and of entries that are not positive."""
    batch, d_sae = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    entries = st.integers(-2, 3) | st.floats(-2, 3, width=32)
    values = draw(st.lists(entries, min_size=batch * d_sae, max_size=batch * d_sae))
    return torch.tensor(values, dtype=torch.float32).view(batch, d_sae)


def optimum(affinities: Tensor, allowed: Callable[[Tensor], Tensor]) -> float:
    """The largest <S, relu(A)> of all subsets S that `allowed` lets through."""
    size = affinities.numel()
    subsets = (torch.arange(2**size)[:, None] >> torch.arange(size)) & 1
    keep = allowed(subsets.view(-1, *affinities.shape))
    return (subsets[keep] * affinities.relu().flatten().double()).sum(1).max().item()


def value(affinities: Tensor, flat: Tensor) -> float:
    """<S, relu(A)> of a selection, after checking its form."""
    assert flat.dtype == torch.int64 and flat.ndim == 1
    assert (flat.diff() > 0).all(), "ascending and unique"
    assert ((flat >= 0) & (flat < affinities.numel())).all()
    return affinities.flatten().double()[flat].relu().sum().item()


@settings(deadline=None)
@given(matrices(), st.data())
def test_token_choice_is_the_best_with_k_per_row(affinities: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, affinities.shape[1]))
    flat = token_choice(affinities, k)
    assert (mask_of(Selection(flat), affinities.shape).sum(1) <= k).all()
    best = optimum(affinities, lambda s: (s.sum(2) <= k).all(1))
    assert value(affinities, flat) == pytest.approx(best)


@settings(deadline=None)
@given(matrices(), st.data())
def test_mutual_choice_is_the_best_of_its_size(affinities: Tensor, data: st.DataObject) -> None:
    budget = data.draw(st.integers(0, affinities.numel()))
    learnt = data.draw(
        st.none() | (st.floats(0, 4, width=32) | st.just(math.inf)).map(threshold_of)
    )
    flat = mutual_choice(affinities, budget, learnt)
    assert len(flat) <= budget
    best = optimum(affinities, lambda s: s.sum((1, 2)) <= budget)
    assert value(affinities, flat) == pytest.approx(best)


@settings(deadline=None)
@given(matrices(), st.data())
def test_feature_choice_is_the_best_with_m_i_per_column(
    affinities: Tensor, data: st.DataObject
) -> None:
    batch, d_sae = affinities.shape
    numbers = st.lists(st.integers(0, batch), min_size=d_sae, max_size=d_sae).filter(any)
    budgets = torch.tensor(data.draw(numbers))
    one = st.floats(0, 4, width=32) | st.just(math.inf)
    learnt = data.draw(st.none() | st.tuples(*[one] * d_sae).map(lambda v: threshold_of(*v)))
    flat = feature_choice(affinities, budgets, learnt)
    assert (mask_of(Selection(flat), affinities.shape).sum(0) <= budgets).all()
    best = optimum(affinities, lambda s: (s.sum(1) <= budgets).all(1))
    assert value(affinities, flat) == pytest.approx(best)


def test_feature_choice_without_any_budget_chooses_nothing() -> None:
    # a last batch of evaluation may be so small that k * batch rounds to 0
    assert feature_choice(batch_of(0), torch.zeros(D_SAE, dtype=torch.int64)).shape == (0,)


@pytest.mark.parametrize(("batch", "d_sae"), [(1, 1), (1, 37), (5, 3), (64, 48), (33, 100)])
def test_feature_choice_matches_a_sort_of_each_column(batch: int, d_sae: int) -> None:
    affinities = batch_of(batch * d_sae, batch, d_sae)
    budgets = torch.randint(0, batch + 1, (d_sae,), generator=torch.Generator().manual_seed(1))
    budgets[0] = batch
    expected = sorted(
        token * d_sae + latent
        for latent in range(d_sae)
        for token in affinities[:, latent].argsort(descending=True)[: budgets[latent]].tolist()
    )
    assert feature_choice(affinities, budgets).tolist() == expected


@settings(deadline=None)
@given(matrices(), st.data())
def test_mutual_choice_keeps_at_least_what_token_and_feature_choice_keep(
    affinities: Tensor, data: st.DataObject
) -> None:
    batch, d_sae = affinities.shape
    k = data.draw(st.integers(1, d_sae))
    most = value(affinities, mutual_choice(affinities, k * batch)) + 1e-9
    assert most >= value(affinities, token_choice(affinities, k))
    budgets = zipf_budgets(
        d_sae, batch, float(k), 1.0, data.draw(st.floats(0, 9))
    ).largest_remainder
    assert most >= value(affinities, feature_choice(affinities, budgets))


@settings(deadline=None)
@given(seed=st.integers(0, 999), budget=st.integers(0, 60), learnt=st.floats(0, 5, width=32))
def test_a_threshold_does_not_change_the_mutual_choice(
    seed: int, budget: int, learnt: float
) -> None:
    affinities = batch_of(seed, 4, 15)
    guessed = mutual_choice(affinities, budget, threshold_of(learnt))
    assert torch.equal(guessed, mutual_choice(affinities, budget))


# ---------------------------------------------------------------- what holds for all


@every_allocator
def test_what_is_not_positive_is_never_active(name: str) -> None:
    affinities = batch_of(1)
    affinities[:, 3:] = -affinities[:, 3:].abs()
    affinities[0] = 0.0
    for mode in (True, False):
        acts = step_of(train(MAKERS[name](), 8).train(mode), affinities).acts
        dense = acts.dense()
        assert ((dense == 0) | (dense == affinities)).all()
        assert not dense[affinities <= 0].any()
        assert acts.tokens_per_latent[3:].sum() == 0
        assert acts.l0_per_token()[0] == 0
        assert acts.l0() == (dense > 0).sum() / BATCH
    assert (step_of(MAKERS[name]().train(), affinities).acts.dense() > 0).any()


@every_allocator
@pytest.mark.parametrize("mode", [True, False])
def test_gradient_is_one_on_the_support_and_zero_elsewhere(name: str, mode: bool) -> None:
    values = batch_of(7).requires_grad_()
    selection = choice(train(MAKERS[name](), 8).train(mode), values.detach())
    selection.of(values).relu().values.sum().backward()
    support = mask_of(selection, values.shape) & (values > 0)
    assert support.any() and values.grad is not None
    assert torch.equal(values.grad, support.float())


@every_allocator
def test_evaluation_decides_each_token_on_its_own(name: str) -> None:
    allocator = train(MAKERS[name](), 12).eval()
    affinities = batch_of(99, 40)
    whole = mask_of(choice(allocator, affinities), affinities.shape) & (affinities > 0)
    assert whole.any()
    alone = torch.cat([mask_of(choice(allocator, row[None]), (1, D_SAE)) for row in affinities])
    assert torch.equal(whole, alone & (affinities > 0))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = mask_of(choice(allocator, affinities[order]), affinities.shape)
    assert torch.equal(whole[order], shuffled & (affinities[order] > 0))


@every_allocator
@pytest.mark.parametrize("mode", [True, False])
def test_permuting_tokens_permutes_the_choice(name: str, mode: bool) -> None:
    allocator = train(MAKERS[name](), 8).train(mode)
    affinities = batch_of(5)
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(1))
    straight = mask_of(choice(copy.deepcopy(allocator), affinities), affinities.shape)
    assert torch.equal(
        straight[order], mask_of(choice(allocator, affinities[order]), affinities.shape)
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 999))
def test_permuting_latents_permutes_the_choice(seed: int) -> None:
    affinities = batch_of(seed)
    order = torch.randperm(D_SAE, generator=torch.Generator().manual_seed(seed))
    budgets = zipf_budgets(D_SAE, BATCH, 2.7, 1.0, 5.0).largest_remainder
    choices: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda a, _: token_choice(a, 3),
        lambda a, _: mutual_choice(a, 40),
        lambda a, m: feature_choice(a, m),
    ]
    for choose in choices:
        straight = mask_of(Selection(choose(affinities, budgets)), affinities.shape)
        permuted = choose(affinities[:, order], budgets[order])
        assert torch.equal(straight[:, order], mask_of(Selection(permuted), affinities.shape))


@every_allocator
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_small_batches_keep_the_budget(name: str, batch: int) -> None:
    allocator = MAKERS[name]().train()
    affinities = batch_of(3, batch).abs()
    kept = step_of(allocator, affinities).acts.l0_per_token().sum()
    expected = {"none": D_SAE * batch, "token": 3 * batch}.get(name, round(2.7 * batch))
    assert kept == expected


# ---------------------------------------------------------------- averages and thresholds


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 5, width=32), st.booleans(), st.integers(1, 500)), max_size=12),
    st.integers(1, 1000),
)
def test_token_average_is_the_weighted_mean_of_what_was_known(
    seen: list[tuple[float, bool, int]], horizon: int
) -> None:
    average = TokenAverage(2, horizon, missing=torch.inf)
    for number, known, tokens in seen:
        given_values = torch.tensor([number, 1.0])
        average.update(given_values, torch.tensor([known, False]), tokens)
    total = weight = 0.0
    for number, _, tokens in (entry for entry in seen if entry[1]):
        keep = math.exp(-tokens / horizon)
        total, weight = keep * total + (1 - keep) * number, keep * weight + (1 - keep)
    expected = total / weight if weight else math.inf
    assert average.value()[0].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert average.value()[1] == math.inf


def test_first_value_of_an_average_counts_fully() -> None:
    average = TokenAverage(1, 10**6, missing=torch.inf)
    average.update(torch.tensor([3.0]), torch.tensor([True]), 1)
    torch.testing.assert_close(average.value(), torch.tensor([3.0]))


def test_thresholds_average_the_smallest_kept_affinity() -> None:
    mutual, each = MAKERS["mutual"](), MAKERS["feature"]()
    assert isinstance(mutual, MutualChoice) and isinstance(each, FeatureChoice)
    keep = math.exp(-BATCH / 100)
    scalar, latents = (0.0, 0.0), [(0.0, 0.0)] * D_SAE
    for seed in range(10):
        affinities = batch_of(seed)
        affinities[:, 4] = -1.0  # a latent that never fires
        mask = mask_of(choice(mutual, affinities), affinities.shape)
        lowest = min(a for a in affinities[mask].tolist() if a > 0)
        scalar = (keep * scalar[0] + (1 - keep) * lowest, keep * scalar[1] + 1 - keep)
        mask = mask_of(choice(each, affinities), affinities.shape) & (affinities > 0)
        for i in range(D_SAE):
            kept = affinities[mask[:, i], i].tolist()
            if kept:
                total, weight = latents[i]
                latents[i] = (keep * total + (1 - keep) * min(kept), keep * weight + 1 - keep)
        for allocator in (mutual, each):
            allocator.observe(
                step_of(allocator, affinities), Progress((seed + 1) * BATCH, 10**6, 1e-3)
            )
    torch.testing.assert_close(
        mutual.threshold.smallest.value(), torch.tensor([scalar[0] / scalar[1]])
    )
    expected = torch.tensor([t / w if w else math.inf for t, w in latents])
    torch.testing.assert_close(each.threshold.smallest.value(), expected)
    assert each.threshold.value()[4] == math.inf
    huge = torch.full((3, D_SAE), 1e30)
    active = mask_of(choice(each.eval(), huge), huge.shape)
    assert torch.equal(active, expected.isfinite().expand(3, -1))


@learns_thresholds
def test_inference_states_the_rule_of_evaluation_mode(name: str) -> None:
    allocator = train(MAKERS[name](), 12).eval()
    rule, affinities = allocator.inference(), batch_of(77, 40)
    assert (
        rule is not None
        and rule.k is None
        and rule.threshold is not None
        and rule.threshold.shape == (D_SAE,)
    )
    assert torch.equal(
        mask_of(choice(allocator, affinities), affinities.shape), affinities > rule.threshold
    )
    assert (
        not choice(MAKERS[name]().eval(), affinities.abs()).of(affinities).active.any()
    )  # nothing learnt yet


def test_inference_of_the_others() -> None:
    assert (NoAllocator(D_SAE).inference().k, NoAllocator(D_SAE).inference().threshold) == (
        None,
        None,
    )
    rule = TokenChoice(D_SAE, k=3).inference()
    assert (rule.k, rule.threshold) == (3, None)


@every_allocator
@pytest.mark.parametrize("factor", [0.013, 3.7])
def test_rescaled_thresholds_choose_the_same_of_rescaled_affinities(
    name: str, factor: float
) -> None:
    allocator = train(MAKERS[name](), 12).double().eval()
    affinities = batch_of(55, 40).double()
    before = mask_of(choice(allocator, affinities), affinities.shape)
    allocator.rescale(factor)
    assert torch.equal(before, mask_of(choice(allocator, affinities * factor), affinities.shape))


@learns_thresholds
@pytest.mark.parametrize("horizon_batches", [0.5, 20])
def test_batch_free_l0_meets_k_on_a_stationary_stream(name: str, horizon_batches: float) -> None:
    batch, k = 128, 4.5
    horizon = round(horizon_batches * batch)
    allocator: Allocator = MutualChoice(D_SAE, k=k, horizon_tokens=horizon)
    if name != "mutual":
        rounding = "stochastic" if "drawn" in name else "largest_remainder"
        allocator = feature(k, 20 * batch if "mutual" in name else 0, horizon, rounding)
    with unchecked():
        train(allocator, 60 if horizon_batches > 1 else 30, batch=batch)
    fresh = batch_of(-1, 5_000)
    assert l0_of(allocator.train(), fresh[: 10 * batch], batch) == pytest.approx(k, rel=0.01)
    l0 = l0_of(allocator.eval(), fresh, 1000)
    assert l0 == pytest.approx(k, rel=0.03 if horizon_batches > 1 else 0.15)  # short ones are noisy


# ---------------------------------------------------------------- feature choice's switch


def test_feature_choice_begins_as_mutual_choice_and_then_freezes_its_ranks() -> None:
    allocator = feature(2.7, 5 * BATCH, horizon_tokens=37)
    keep = math.exp(-BATCH / 37)
    density = torch.zeros(D_SAE, dtype=torch.float64)
    for index in range(5):  # the densities of the first 5 batches rank the latents
        affinities = batch_of(index)
        mask = mask_of(choice(allocator.train(), affinities), affinities.shape)
        assert torch.equal(
            flat_of(choice(allocator, affinities)), mutual_choice(affinities, round(2.7 * BATCH))
        )
        fired = (mask & (affinities > 0)).double().mean(0)
        density = keep * density + (1 - keep) * fired
        train(allocator, 1, index)
    order = sorted(range(D_SAE), key=lambda i: (-round(density[i].item(), 9), i))
    budgets = torch.zeros(D_SAE, dtype=torch.int64)
    budgets[order] = zipf_budgets(D_SAE, BATCH, 2.7, 1.0, 5.0).largest_remainder
    assert torch.equal(allocator.budgets(BATCH), budgets)
    for index in range(5, 15):
        affinities = batch_of(index).flip(1)  # other latents fire most: the ranks stay
        kept = flat_of(choice(allocator.train(), affinities))
        assert torch.equal(kept, feature_choice(affinities, budgets))
        counts = mask_of(choice(allocator, affinities), affinities.shape).sum(0)
        assert torch.equal(counts, budgets)
        allocator.observe(
            step_of(allocator, affinities), Progress((index + 1) * BATCH, 10**6, 1e-3)
        )
    assert torch.equal(allocator.budgets(BATCH), budgets)


def test_feature_choice_from_scratch_ranks_by_order() -> None:
    allocator = train(feature(2.7, 0), 6)
    assert isinstance(allocator, FeatureChoice)
    by_rank = zipf_budgets(D_SAE, BATCH, 2.7, 1.0, 5.0).largest_remainder
    assert torch.equal(allocator.budgets(BATCH), by_rank)


def test_thresholds_after_the_switch_know_nothing_of_mutual_choice() -> None:
    allocator = feature(2.7, 5 * BATCH, horizon_tokens=10**6)
    train(allocator, 6)
    affinities = batch_of(5)
    mask = mask_of(feature_choice_of(allocator, affinities), affinities.shape) & (affinities > 0)
    smallest = torch.where(mask, affinities, torch.inf).min(0).values
    torch.testing.assert_close(allocator.threshold.smallest.value(), smallest, rtol=0.05, atol=0)


def test_a_switch_at_the_very_end_leaves_thresholds_to_evaluate_with() -> None:
    # mutual_tokens may be as large as training.tokens; then no batch follows the switch
    allocator = train(feature(2.7, 5 * BATCH), 5)
    affinities = batch_of(-1, 4000)
    assert l0_of(allocator.eval(), affinities, 200) == pytest.approx(2.7, rel=0.25)


def feature_choice_of(allocator: FeatureChoice, affinities: Tensor) -> Selection:
    return Selection(feature_choice(affinities, allocator.budgets(len(affinities))))


# ---------------------------------------------------------------- drawn budgets


def drawn(seed: int = 0, k: float = 2.7, mutual_tokens: int = 0) -> FeatureChoice:
    return feature(k, mutual_tokens, rounding="stochastic", seed=seed)


def counts(allocator: FeatureChoice, batch: int = BATCH) -> Tensor:
    """Pairs that the allocator lets through of a batch, by latent."""
    affinities = batch_of(1, batch)
    return mask_of(choice(allocator.train(), affinities), affinities.shape).sum(0)


def test_drawn_budgets_are_right_on_average_and_their_sum_is_exact() -> None:
    allocator = drawn()
    exact = zipf_budgets(D_SAE, BATCH, 2.7, 1.0, 5.0).exact
    every: list[Tensor] = []
    for allocator.unobserved in range(1000):  # as if so many batches had been evaluated
        every.append(allocator.budgets(BATCH))
    drawings = torch.stack(every)
    assert (drawings.sum(1) == round(2.7 * BATCH)).all()
    assert ((drawings == exact.floor()) | (drawings == exact.ceil())).all()
    torch.testing.assert_close(drawings.double().mean(0), exact, atol=0.1, rtol=0)
    assert len(drawings.unique(dim=0)) > 20
    allocator.unobserved = 0
    chosen = torch.stack([counts(allocator) for _ in range(20)])  # evaluation: none observed
    assert torch.equal(chosen, drawings[:20])


def test_batches_between_two_observations_are_drawn_apart_and_alike_each_time() -> None:
    allocator = drawn()
    train(allocator, 3)
    first = [counts(allocator).tolist() for _ in range(5)]
    assert first != [first[0]] * 5
    train(allocator, 1, start=3)
    later = [counts(allocator).tolist() for _ in range(5)]
    assert later != first
    again = train(drawn(), 4)
    assert isinstance(again, FeatureChoice)
    assert [counts(again).tolist() for _ in range(5)] == later


def test_drawings_depend_on_the_seed_and_on_the_tokens_seen() -> None:
    drawings: list[Tensor] = []
    for seed, tokens in ((0, 0), (1, 0), (2**63 - 1, 0), (0, 1), (0, 2**40)):
        allocator = drawn(seed)
        allocator.tokens_seen = tokens
        drawings.append(torch.stack([counts(allocator) for _ in range(4)]))
    assert len({drawing.numpy().tobytes() for drawing in drawings}) == len(drawings)


def test_a_reload_in_mid_run_draws_what_the_run_draws() -> None:
    allocator, seen = drawn(seed=3), list[list[int]]()
    for index in range(12):
        if index == 7:  # resuming restores buffers, nothing else
            state = copy.deepcopy(allocator.state_dict())
            allocator = drawn(seed=3)
            allocator.load_state_dict(state)
        seen.append(copy.deepcopy(allocator).budgets(BATCH).tolist())
        train(allocator, 1, start=index)
    straight, unbroken = drawn(seed=3), list[list[int]]()
    for index in range(12):
        unbroken.append(straight.budgets(BATCH).tolist())
        train(straight, 1, start=index)
    assert seen == unbroken
    assert len({tuple(budgets) for budgets in seen}) > 1


def test_evaluation_draws_the_same_of_reloaded_weights() -> None:
    allocator = drawn()
    train(allocator, 4)
    first = [counts(allocator).tolist() for _ in range(3)]
    reloaded = drawn()
    reloaded.load_state_dict(allocator.state_dict())  # saved after that evaluation
    assert [counts(reloaded).tolist() for _ in range(3)] == first


def test_drawn_budgets_keep_the_ranks_of_the_switch() -> None:
    allocator = drawn(mutual_tokens=5 * BATCH)
    train(allocator, 5)
    ranks = allocator.latent_of_rank.clone()
    assert not torch.equal(ranks, torch.arange(D_SAE))
    exact = zipf_budgets(D_SAE, BATCH, 2.7, 1.0, 5.0).exact
    for index in range(5, 15):
        affinities = batch_of(index).flip(1)  # other latents fire most
        found = mask_of(choice(allocator.train(), affinities), affinities.shape).sum(0)[ranks]
        assert ((found == exact.floor()) | (found == exact.ceil())).all()
        progress = Progress((index + 1) * BATCH, 10**6, 1e-3)
        allocator.observe(step_of(allocator, affinities), progress)
    assert torch.equal(allocator.latent_of_rank, ranks)


def test_batches_too_small_for_a_slot_each_leave_no_latent_dead() -> None:
    k, batches = 0.8, 100
    exact = zipf_budgets(D_SAE, BATCH, k, 1.0, 5.0)
    assert (exact.largest_remainder == 0).any() and exact.exact.min() < 0.3
    kept = torch.zeros(D_SAE)
    allocator = drawn(k=k)
    for index in range(batches):
        step = step_of(allocator.train(), batch_of(index).abs())
        kept += step.acts.tokens_per_latent
        allocator.observe(step, Progress((index + 1) * BATCH, 10**6, 1e-3))
    assert (kept > 0).all()
    torch.testing.assert_close(kept.double() / batches, exact.exact, atol=0.1, rtol=0)
    assert allocator.threshold.value().isfinite().all()


# ---------------------------------------------------------------- state


@every_allocator
@pytest.mark.parametrize("steps", [0, 3, 12])
def test_state_dict_holds_all_state(name: str, steps: int) -> None:
    trained = train(MAKERS[name](), steps)
    state = copy.deepcopy(trained.state_dict())
    loaded = MAKERS[name]()
    loaded.load_state_dict(state)
    for allocator in (trained, loaded):
        train(allocator, 5, start=steps)  # both go on alike
    assert trained.state_dict().keys() == loaded.state_dict().keys()
    for one, other in zip(trained.state_dict().values(), loaded.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    affinities = batch_of(1234)
    for mode in (True, False):
        one, other = (
            mask_of(choice(a.train(mode), affinities), (BATCH, D_SAE)) for a in (trained, loaded)
        )
        assert torch.equal(one, other)


@every_allocator
def test_choosing_changes_no_state(name: str) -> None:
    allocator = train(MAKERS[name](), 8)
    state = copy.deepcopy(allocator.state_dict())
    for mode in (True, False):
        choice(allocator.train(mode), batch_of(3, 5))
    assert all(torch.equal(state[key], tensor) for key, tensor in allocator.state_dict().items())
