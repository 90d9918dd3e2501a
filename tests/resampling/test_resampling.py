"""Neuron resampling: who is replaced, by which inputs, with which weights; and whole runs."""

import json
import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from sae_sweeps.config.options import RunConfig
from sae_sweeps.engine.acts import SparseActs
from sae_sweeps.interfaces import Architecture, Progress, Step
from sae_sweeps.optimizer.adam import Adam
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.resampling.neuron_resampling import NeuronResampling
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer, new_trainer
from tests.support.commands import refusal, run, trainer
from tests.support.small import small_run, train
from tests.support.unchecked import unchecked

__all__ = ["run", "trainer"]  # fixtures

BATCH = 16
RESAMPLING = "resampling=neuron_resampling"


def module(d_in: int = 4, d_sae: int = 11, **changed: Any) -> NeuronResampling:
    """Resampling after every two batches, of latents silent in the second, by its inputs."""
    given: dict[str, Any] = {
        "every_tokens": 2 * BATCH,
        "times": 3,
        "window_tokens": BATCH,
        "sample_tokens": BATCH,
        "encoder_share": 0.2,
        "rewarm_tokens": 0,
        "seed": 0,
    }
    return NeuronResampling(d_in, d_sae, **given | changed)


@cache
def config_of(*overrides: str) -> RunConfig:
    return small_run(Path(), *overrides).config


def sae_of(method: str, d_in: int, d_sae: int, seed: int) -> Architecture:
    """An SAE with nothing at zero and decoder rows of length 1."""
    sae = new_sae(replace(config_of(f"method={method}"), d_sae=d_sae), d_in)
    generator = torch.Generator().manual_seed(seed)
    for parameter in sae.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    sae.W_dec.data /= sae.W_dec.data.norm(dim=1, keepdim=True)
    return sae


def step_of(sae: Architecture, x: Tensor, fired: list[bool]) -> Step:
    """A step on `x` in which exactly the given latents fired."""
    step = sae(x, torch.zeros(len(fired), dtype=torch.bool))
    values = torch.tensor(fired).float().expand(len(x), -1)
    return replace(step, acts=SparseActs(None, values))


def progress(tokens: int) -> Progress:
    return Progress(tokens, 10**6, 1e-3)


# --- Who is replaced -----------------------------------------------------------------------


@settings(max_examples=60)
@given(
    fired=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=14),
    every=st.integers(1, 80),
    window=st.integers(1, 80),
    times=st.integers(1, 4),
)
@example(fired=[[False] * 3] * 4, every=BATCH, window=2 * BATCH, times=4)
def test_latents_silent_for_the_window_are_replaced_at_each_multiple(
    fired: list[list[bool]], every: int, window: int, times: int
) -> None:
    """A latent's silence counts from its last firing or replacement on."""
    sae = sae_of("relu", 4, 3, 0)
    made = module(4, 3, every_tokens=every, window_tokens=window, times=times)
    since, multiples = [0, 0, 0], list(range(every, times * every + 1, every))
    for number, now in enumerate(fired, 1):
        x = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(number))
        since = [0 if f else s + BATCH for f, s in zip(now, since, strict=True)]
        due = any((number - 1) * BATCH < multiple <= number * BATCH for multiple in multiples)
        dead = [i for i in range(3) if due and since[i] >= window]
        replaced = made(sae, step_of(sae, x, now), progress(number * BATCH))
        assert ([] if replaced is None else replaced.tolist()) == dead
        since = [0 if i in dead else s for i, s in enumerate(since)]


# --- Which inputs --------------------------------------------------------------------------

ERRORS = (1.0, 2.0, 0.0, 3.0, 4.0, 1.5)
"""||x - recon||^2 of six tokens, in batches of two; the third is reconstructed perfectly."""


@cache
def six_tokens(dead: int) -> tuple[Architecture, list[Step]]:
    """An SAE without b_dec, and three steps on unit vectors, its first latents silent."""
    sae = sae_of("relu", 6, 8, 0)
    sae.b_dec.data.zero_()
    steps: list[Step] = []
    for start in (0, 2, 4):
        x = torch.eye(6)[start : start + 2]
        error = torch.tensor(ERRORS[start : start + 2]).sqrt()[:, None] * torch.ones(6) / 6**0.5
        step = step_of(sae, x, [latent >= dead for latent in range(8)])
        steps.append(replace(step, recon=x - error))
    return sae, steps


def drawn(seed: int, dead: int) -> tuple[int, ...]:
    """Which of the six tokens each of the first `dead` latents was given."""
    sae, steps = six_tokens(dead)
    made = module(6, 8, every_tokens=6, sample_tokens=6, window_tokens=1, seed=seed)
    for number, step in enumerate(steps, 1):
        made(sae, step, progress(2 * number))
    return tuple(sae.W_dec[:dead].argmax(1).tolist())


def test_inputs_are_drawn_in_proportion_to_the_squared_loss() -> None:
    draws, weights = 600, [error**2 for error in ERRORS]
    counts = Counter(drawn(seed, 1)[0] for seed in range(draws))
    for token, weight in enumerate(weights):
        p = weight / sum(weights)
        assert abs(counts[token] - p * draws) <= 4 * math.sqrt(draws * p * (1 - p))


def test_no_input_is_drawn_twice() -> None:
    """The second draw is among what the first has left, by the same weights."""
    draws, weights = 600, [error**2 for error in ERRORS]
    counts = Counter(drawn(seed, 2) for seed in range(draws))
    for first, one in enumerate(weights):
        for second, other in enumerate(weights):
            p = one / sum(weights) * other / (sum(weights) - one) if first != second else 0
            assert abs(counts[first, second] - p * draws) <= 4 * math.sqrt(draws * p * (1 - p))


def test_latents_beyond_the_inputs_stay_dead() -> None:
    """Two inputs for eleven dead latents: the next resamplings replace further ones."""
    sae, made = sae_of("relu", 4, 11, 0), module(4, 11, every_tokens=2, window_tokens=2)
    for tokens, expected in ((2, [0, 1]), (4, [2, 3]), (6, [4, 5])):
        before = deepcopy(sae.state_dict())
        x = torch.randn(2, 4, generator=torch.Generator().manual_seed(tokens))
        fired = [latent < expected[0] for latent in range(11)]
        replaced = made(sae, step_of(sae, x, fired), progress(tokens))
        assert replaced is not None and replaced.tolist() == expected
        assert sae.W_dec[expected[1] + 1 :].equal(before["W_dec"][expected[1] + 1 :])


@pytest.mark.parametrize(("sample", "batches"), [(1, 1), (BATCH, 1), (BATCH + 1, 2)])
def test_inputs_come_from_the_last_tokens(sample: int, batches: int) -> None:
    """Batches that lie in the last `sample_tokens` tokens, wholly or in part."""
    x = torch.randn(4 * BATCH, 4, generator=torch.Generator().manual_seed(1))
    sources: set[int] = set()
    for seed in range(8):
        sae, replaced = sae_of("relu", 4, 60, 0), None
        made = module(4, 60, every_tokens=4 * BATCH, sample_tokens=sample, seed=seed)
        for number, batch in enumerate(x.split(BATCH), 1):
            replaced = made(sae, step_of(sae, batch, [False] * 60), progress(number * BATCH))
        assert replaced is not None and len(replaced) == min(60, batches * BATCH)
        cosine = sae.W_dec[: len(replaced)] @ torch.nn.functional.normalize(x - sae.b_dec).T
        sources |= set((cosine.argmax(1) // BATCH).tolist())
    assert sources == set(range(4 - batches, 4))


def test_a_resampling_leaves_no_input_to_the_next() -> None:
    sae, made = sae_of("relu", 4, 3, 0), module(4, 3)
    first = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(1))
    second = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(2)) * 1e-3
    for number in (1, 2, 3, 4):  # the first two have by far the greater loss
        made(sae, step_of(sae, first if number < 3 else second, [False] * 3), progress(number * 16))
    cosine = sae.W_dec @ torch.nn.functional.normalize(second - sae.b_dec).T
    assert (cosine.max(1).values > 1 - 1e-5).all()


def test_the_draw_depends_on_seed_and_tokens_alone() -> None:
    expected = drawn(3, 4)
    torch.manual_seed(5)
    assert drawn(3, 4) == expected
    assert len({drawn(seed, 4) for seed in range(5)}) > 1
    kept: list[Tensor] = []
    for tokens in (BATCH, 3 * BATCH):
        sae, made = sae_of("relu", 4, 11, 0), module(4, 11, every_tokens=tokens)
        x = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(1))
        made.silent += tokens
        made(sae, step_of(sae, x, [False] * 11), progress(tokens))
        kept.append(sae.W_dec)
    assert not kept[0].equal(kept[1])


# --- Which weights -------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    method=st.sampled_from(["relu", "gated"]),
    sizes=st.sampled_from([(4, 11), (7, 7), (9, 5)]),
    rows=st.sampled_from([1.0, 2.5]),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_new_weights(
    method: str, sizes: tuple[int, int], rows: float, seed: int, data: st.DataObject
) -> None:
    """Against a naive reference in float64, given which inputs were drawn."""
    d_in, d_sae = sizes
    living = data.draw(st.lists(st.booleans(), min_size=d_sae, max_size=d_sae))
    sae = sae_of(method, d_in, d_sae, seed)
    sae.W_dec.data *= rows
    old = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    x = torch.randn(BATCH, d_in, generator=torch.Generator().manual_seed(1000 + seed))
    made = module(d_in, d_sae, every_tokens=BATCH, seed=seed)
    made(sae, step_of(sae, x, living), progress(BATCH))

    wanted = {name: value.double() for name, value in old.items()}
    others = [i for i in range(d_sae) if living[i]] or list(range(d_sae))
    column = sum(wanted["W_enc"][:, i].norm() for i in others) / len(others)
    row = sum(wanted["W_dec"][i].norm() for i in others) / len(others)
    centred = x.double() - wanted["b_dec"]
    for latent in [i for i in range(d_sae) if not living[i]]:
        source = (centred / centred.norm(dim=1, keepdim=True)) @ sae.W_dec[latent].double()
        direction = centred[source.argmax()] / centred[source.argmax()].norm()
        wanted["W_enc"][:, latent] = 0.2 * column * direction
        wanted["W_dec"][latent] = row * direction
        for name in old.keys() - {"W_enc", "W_dec", "b_dec"}:
            wanted[name][latent] = 0
    for name, parameter in sae.named_parameters():
        torch.testing.assert_close(parameter.double(), wanted[name], rtol=1e-5, atol=1e-6)
        for latent in [i for i in range(d_sae) if living[i]]:
            place = (slice(None), latent) if name == "W_enc" else latent
            assert name == "b_dec" or parameter[place].equal(old[name][place])


# --- In the trainer ------------------------------------------------------------------------


def trainer_of(sae: Architecture, *overrides: str, **changed: Any) -> Trainer:
    """Trains `sae`; its latents 0 to 2 can never fire."""
    config = config_of(f"method={'gated' if hasattr(sae, 'b_gate') else 'relu'}", *overrides)
    node = config.nodes["resampling"] | (changed if RESAMPLING in overrides else {})
    sae.get_parameter("b_gate" if hasattr(sae, "b_gate") else "b_enc").data[:3] = -1e3
    return new_trainer(replace(config, nodes=config.nodes | {"resampling": node}), sae)


SHORT = {"every_tokens": 4 * BATCH, "window_tokens": BATCH, "sample_tokens": 2 * BATCH, "times": 2}


def batches(d_in: int, count: int) -> list[Tensor]:
    """Activations in which every latent of a small SAE fires sooner or later."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randn(BATCH, d_in, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("method", ["relu", "gated"])
@pytest.mark.parametrize("sizes", [(4, 11), (7, 7)])
def test_the_optimiser_forgets_the_replaced_latents_and_no_other(
    method: str, sizes: tuple[int, int]
) -> None:
    with_it = trainer_of(sae_of(method, *sizes, 0), RESAMPLING, **SHORT)
    without = trainer_of(sae_of(method, *sizes, 0))
    for x in batches(sizes[0], 3):
        with_it.step(x, wanted=False)
        without.step(x, wanted=False)
    [x] = batches(sizes[0], 4)[3:]
    figures = with_it.step(x, wanted=True)
    without.step(x, wanted=False)
    replaced = (with_it.tokens_since_fired != without.tokens_since_fired).nonzero().squeeze(1)
    assert {0, 1, 2} <= set(replaced.tolist()) and len(replaced) < sizes[1]
    assert figures["features/resampled"] == len(replaced)
    assert (with_it.tokens_since_fired[replaced] == 0).all()
    theirs = dict(without.sae.named_parameters())
    for name, parameter in with_it.sae.named_parameters():
        touched = torch.zeros(parameter.shape, dtype=torch.bool)
        if name != "b_dec":
            touched[(slice(None), replaced) if name == "W_enc" else replaced] = True
        assert parameter[~touched].equal(theirs[name][~touched]), name
        kept = with_it.optimizer, without.optimizer
        assert isinstance(kept[0], Adam) and isinstance(kept[1], Adam)
        moments = kept[0].moments(parameter), kept[1].moments(theirs[name])
        assert len(moments[0]) == 2
        for moment, same in zip(*moments, strict=True):
            assert (moment[touched] == 0).all(), name
            assert moment[~touched].equal(same[~touched]) and moment[~touched].any(), name


def test_without_dead_latents_nothing_changes() -> None:
    """No latent is silent for as long as from one resampling to the next."""
    given = SHORT | {"window_tokens": 4 * BATCH, "rewarm_tokens": 2 * BATCH}
    ends: list[dict[str, Tensor]] = []
    for one in (
        trainer_of(sae_of("relu", 4, 11, 0), RESAMPLING, **given),
        trainer_of(sae_of("relu", 4, 11, 0)),
    ):
        one.sae.get_parameter("b_enc").data.fill_(5.0)
        for x in batches(4, 10):
            assert "features/resampled" not in one.step(x, wanted=True)
        ends.append(one.sae.state_dict())
    assert all(tensor.equal(ends[1][name]) for name, tensor in ends[0].items())


def test_the_learning_rate_dips_after_a_replacement() -> None:
    """A tenth first, then half a cosine up; beyond it, and with 0 tokens, the full rate."""
    sae, x = sae_of("relu", 4, 3, 0), torch.randn(BATCH, 4)
    for rewarm in (64, 0):
        made = module(4, 3, rewarm_tokens=rewarm, every_tokens=100)
        assert made.lr_factor(0) == made.lr_factor(500) == 1
        for number in range(1, 8):  # the multiple lies within the last batch
            assert made.lr_factor(number * BATCH - BATCH) == 1
            made(sae, step_of(sae, x, [False] * 3), progress(number * BATCH))
        found = [made.lr_factor(112 + done) for done in (0, 16, 32, 48, 64, 65, 1000)]
        rise = [0.1 + 0.9 * (0.5 - 0.5 * math.cos(math.pi * share / 4)) for share in range(5)]
        assert found == pytest.approx([*rise, 1, 1] if rewarm else [1] * 7)
    dipping = trainer_of(sae_of("relu", 4, 11, 0), RESAMPLING, **SHORT, rewarm_tokens=2 * BATCH)
    plain = trainer_of(sae_of("relu", 4, 11, 0))
    rates = [
        [one.step(x, wanted=True)["train/lr"].item() for x in batches(4, 8)]
        for one in (dipping, plain)
    ]
    factors = [one / other for one, other in zip(*rates, strict=True)]
    assert factors == pytest.approx([1, 1, 1, 1, 0.1, 0.55, 1, 1])


@pytest.mark.parametrize("method", ["relu", "gated"])
@pytest.mark.parametrize("stop", [1, 3, 5, 7])
def test_a_reloaded_trainer_goes_on_bit_for_bit(method: str, stop: int) -> None:
    """Stopped before or in the middle of drawing, and while the learning rate rises."""
    given = SHORT | {"window_tokens": 3 * BATCH, "rewarm_tokens": 3 * BATCH}
    one = trainer_of(sae_of(method, 4, 11, 0), RESAMPLING, **given)
    for x in batches(4, stop):
        one.step(x, wanted=False)
    other = trainer_of(sae_of(method, 4, 11, 1), RESAMPLING, **given)
    other.sae.load_state_dict(deepcopy(one.sae.state_dict()))
    other.resampling.load_state_dict(deepcopy(one.resampling.state_dict()))
    other.optimizer.restore(deepcopy(one.optimizer.tensors()))
    other.tokens, other.replaced = one.tokens, one.replaced
    other.tokens_since_fired = one.tokens_since_fired.clone()
    for x in batches(4, 12)[stop:]:
        figures = [each.step(x, wanted=True) for each in (one, other)]
        assert figures[0] == figures[1]
    assert one.replaced >= 3
    theirs = other.sae.state_dict()
    assert all(tensor.equal(theirs[name]) for name, tensor in one.sae.state_dict().items())


# --- Whole runs ----------------------------------------------------------------------------

DEADLY = ["d_sae=256", "training.tokens=16384", "architecture.l1_coef=0.1", "optimizer.lr=0.03"]
"""A learning rate at which a third of the latents die."""


def rows_of(done: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (done.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["relu", "gated"])
def test_fewer_latents_are_dead_in_the_end(method: str, tmp_path: Path) -> None:
    words = [f"method={method}", *DEADLY]
    without, with_it = small_run(tmp_path, *words), small_run(tmp_path, *words, RESAMPLING)
    with unchecked():
        trained = train(without, with_it)
    outcomes = [outcome for outcome in trained if isinstance(outcome, Result)]
    dead = [outcome.metrics["dead_frac"] for outcome in outcomes]
    assert dead[0] > 0.2 and dead[1] < 0.6 * dead[0]
    counts = [row.get("features/resampled", 0) for row in rows_of(with_it)]
    assert counts == sorted(counts) and counts[-1] > 0.1 * 256
    assert not any("features/resampled" in row for row in rows_of(without))


@pytest.mark.slow
def test_company_changes_nothing(tmp_path: Path) -> None:
    methods = ["method=relu", "method=gated"]
    packed = [small_run(tmp_path / "packed", method, *DEADLY, RESAMPLING) for method in methods]
    train(*packed)
    for one, method in zip(packed, methods, strict=True):
        alone = small_run(tmp_path / "alone", method, *DEADLY, RESAMPLING)
        train(alone)
        ours, theirs = (
            load_file(made.folder / "checkpoint" / "weights.safetensors") for made in (one, alone)
        )
        assert all(tensor.equal(theirs[name]) for name, tensor in ours.items())
        last = [rows_of(made)[-1]["features/resampled"] for made in (one, alone)]
        assert last[0] == last[1] > 0


# --- Refusals ------------------------------------------------------------------------------

NEEDS_PENALTY = (
    "resampling.encoder_share is 0.02: resampling needs an L1 penalty, so allocator=none"
)
BAD = {
    "allocator": (["method=topk"], NEEDS_PENALTY),
    "jumprelu": (["method=jumprelu"], NEEDS_PENALTY),
    "gated with a budget": (["architecture=gated", "allocator=mutual_choice"], NEEDS_PENALTY),
    "decay": (
        ["method=relu", "resampling.times=5"],
        "resampling.times is 5: the last would come after 204800 tokens, expected at most 196608,",
    ),
    "times": (["method=relu", "resampling.times=0"], "resampling.times is 0, expected at least 1."),
    "share": (
        ["method=relu", "resampling.encoder_share=0"],
        "resampling.encoder_share is 0, expected more than 0.",
    ),
    "rewarm": (
        ["method=relu", "resampling.rewarm_tokens=-1"],
        "resampling.rewarm_tokens is -1, expected at least 0.",
    ),
    "every": (
        ["method=relu", "resampling.every_tokens=0"],
        "resampling.every_tokens is 0, expected at least 1.",
    ),
} | {
    name: (
        ["method=relu", f"resampling.{name}=50000"],
        f"resampling.{name} is 50000, expected at most resampling.every_tokens, which is 40960.",
    )
    for name in ("window_tokens", "sample_tokens", "rewarm_tokens")
}


@pytest.mark.parametrize("name", BAD)
def test_what_makes_no_sense_is_refused(
    name: str, run: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words, expected = BAD[name]
    assert run(*words, RESAMPLING) == 1
    assert expected in refusal(capsys, tmp_path)


@pytest.mark.parametrize("method", ["relu", "gated"])
def test_penalty_methods_may_be_resampled(
    method: str, run: Callable[..., int], trainer: Any
) -> None:
    assert run(f"method={method}", "resampling=none,neuron_resampling") == 0
    assert [run.label for run in trainer.runs] == [method, f"{method} + neuron_resampling"]
