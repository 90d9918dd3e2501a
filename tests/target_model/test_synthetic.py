"""The synthetic target model: its distributions, its rows as pure functions, runs on it."""

import json
import math
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.stats import multivariate_normal, norm
from torch import Tensor

from sae_sweeps.config import options, rules
from sae_sweeps.data.none import NoData
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Split
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.target_model.synthetic import Synthetic
from tests.support.commands import Trainer, refusal, run, trainer
from tests.support.small import small_run, train
from tests.support.streams import Alone

__all__ = ["run", "trainer"]  # fixtures

CPU = torch.device("cpu")
SPLITS: tuple[Split, Split] = ("train", "held_out")

SMALL: dict[str, Any] = {
    "d_in": 16,
    "features": 30,
    "l0": 4.0,
    "exponent": 1.0,
    "shift": 1.0,
    "magnitude_sigma": 0.5,
    "correlation": 0.0,
    "group_size": 4,
    "offset": 2.0,
    "noise": 0.0,
    "seed": 0,
    "tokens_per_row": 32,
    "train_tokens": 1000,
    "held_out_tokens": 500,
}
SIGMAS = 5.0
"""Standard errors that a measured mean may be off; a chance of 6e-7, and seeds are fixed."""


def target(**changed: Any) -> Synthetic:
    return Synthetic(NoData(), CPU, **(SMALL | changed))


def sample(tokens: int, **changed: Any) -> tuple[Synthetic, Tensor, Tensor]:
    """A target model, and float64 codes and activations of one long row."""
    made = target(tokens_per_row=tokens, **changed)
    row = torch.tensor([0])
    return made, made.codes("train", row).double(), made.activations("train", row).double()


def dictionary(made: Synthetic) -> Tensor:
    """The true directions, in float64."""
    assert made.dictionary is not None
    return made.dictionary.double()


def assert_mean(values: Tensor, expected: float | Tensor) -> None:
    """Means over the first axis are as expected, within sampling error."""
    error = values.std(0) / len(values) ** 0.5
    assert ((values.mean(0) - expected).abs() <= SIGMAS * error).all()


# --- Firing --------------------------------------------------------------------------------


def naive_probabilities(features: int, l0: float, exponent: float, shift: float) -> list[float]:
    """Bisection for the factor C of min(1, C * weight)."""
    weights = [((rank + shift) / (1 + shift)) ** -exponent for rank in range(1, features + 1)]
    low, high = 0.0, 1 / weights[-1]
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(min(1.0, middle * weight) for weight in weights)
        low, high = (middle, high) if total < l0 else (low, middle)
    return [min(1.0, high * weight) for weight in weights]


@given(
    features=st.integers(1, 60),
    filled=st.floats(0.001, 1.0),
    exponent=st.floats(0.0, 3.0),
    shift=st.floats(0.0, 10.0),
)
def test_probabilities_are_zipfs_capped_and_sum_to_l0(
    features: int, filled: float, exponent: float, shift: float
) -> None:
    l0 = filled * features
    found = target(features=features, l0=l0, exponent=exponent, shift=shift).probabilities
    naive = naive_probabilities(features, l0, exponent, shift)
    assert found.tolist() == pytest.approx(naive, rel=1e-6, abs=1e-9)
    assert found.sum().item() == pytest.approx(l0, rel=1e-9, abs=1e-9)
    assert found.max() <= 1


def test_by_hand() -> None:
    # Weights 1, 1/2, 1/3, 1/4: with C = 1.5 * 12/13 and the first one capped.
    found = target(features=4, l0=2.5, shift=0.0).probabilities
    assert found.tolist() == pytest.approx([1, 9 / 13, 6 / 13, 4.5 / 13])


@pytest.mark.parametrize("correlation", [0.0, 0.7])
def test_every_feature_fires_as_often_as_it_should(correlation: float) -> None:
    made, codes, _ = sample(40_000, correlation=correlation, features=60, l0=5.0)
    p, n = made.probabilities, len(codes)
    z = ((codes > 0).double().sum(0) - n * p) / (n * p * (1 - p)).sqrt()
    assert z.abs().max() < SIGMAS
    # Together they are as far off as chance makes them, neither more nor less.
    assert abs(z.pow(2).sum().item() / 60 - 1) < SIGMAS * (2 / 60) ** 0.5
    assert made.true_l0 == 5.0
    assert_mean((codes > 0).double().sum(1), 5.0)


def test_features_fire_independently_without_correlation() -> None:
    made, codes, _ = sample(40_000)
    p = made.probabilities
    l0 = (codes > 0).double().sum(1)
    assert_mean((l0 - 4).pow(2), (p * (1 - p)).sum())


def test_rare_features_fire_at_their_rate() -> None:
    """Rarer than 16 random bits could tell."""
    _, codes, acts = sample(400_000, features=8, l0=3e-5, exponent=0.0, d_in=1)
    fired, expected = (codes > 0).sum().item(), 3e-5 * len(codes)
    assert abs(fired - expected) < 3 * expected**0.5
    assert acts.isfinite().all()


def test_features_that_always_and_never_fire() -> None:
    _, codes, _ = sample(1000, features=6, l0=6.0, correlation=0.5)
    assert (codes > 0).all()
    _, codes, _ = sample(1000, features=6, l0=2.0, exponent=1000.0, correlation=0.5)
    assert (codes > 0).sum(0).tolist() == [1000, 1000, 0, 0, 0, 0]


def both(probability: float, correlation: float) -> float:
    """P(both of two standard normals lie below the quantile)."""
    quantile = norm.ppf(probability)
    covariance: Any = [[1.0, correlation], [correlation, 1.0]]
    pair = multivariate_normal(cov=covariance)
    return float(pair.cdf([quantile, quantile]))


@pytest.mark.parametrize("correlation", [0.3, 0.8])
def test_a_copula_joins_the_features_of_a_group_and_no_others(correlation: float) -> None:
    made, codes, _ = sample(
        40_000, features=10, l0=1.5, exponent=0.0, correlation=correlation, group_size=4
    )
    fires = (codes > 0).double()
    p = made.probabilities[0].item()
    for group in (range(4), range(4, 8), range(8, 10)):
        pairs = [fires[:, i] * fires[:, j] for i in group for j in group if i < j]
        assert_mean(torch.stack(pairs).mean(0), both(p, correlation))
    across = [fires[:, i] * fires[:, j] for i in range(4) for j in range(4, 10)]
    assert_mean(torch.stack(across).mean(0), p * p)


def test_factors_belong_to_tokens() -> None:
    """The number that fires in a token says nothing of the next token."""
    _, codes, _ = sample(40_000, correlation=0.9, group_size=30)
    l0 = (codes > 0).double().sum(1) - 4
    assert l0.var() > 20
    assert_mean(l0[1:] * l0[:-1], 0.0)


# --- Magnitudes, offset, noise -------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.3, 0.8])
def test_magnitudes_are_log_normal_with_mean_one(sigma: float) -> None:
    _, codes, _ = sample(40_000, magnitude_sigma=sigma)
    magnitudes = codes[codes > 0]
    assert_mean(magnitudes, 1.0)
    logs = magnitudes.log()
    assert_mean(logs, -(sigma**2) / 2)
    assert_mean((logs + sigma**2 / 2).pow(2), sigma**2)
    for bound in (0.5, 1.5, 3.0):
        tail = norm.sf((math.log(bound) + sigma**2 / 2) / sigma)
        assert_mean((magnitudes > bound).double(), float(tail))


def test_magnitudes_do_not_depend_on_the_feature_or_its_company() -> None:
    _, codes, _ = sample(40_000)
    for feature in (0, 7, 29):
        assert_mean(codes[codes[:, feature] > 0, feature], 1.0)
    together = codes[(codes[:, 0] > 0) & (codes[:, 1] > 0)]
    assert_mean((together[:, 0] - 1) * (together[:, 1] - 1), 0.0)


def test_without_sigma_all_magnitudes_are_one() -> None:
    _, codes, _ = sample(200, magnitude_sigma=0.0)
    assert codes.unique().tolist() == [0, 1]


def test_activations_are_codes_times_dictionary_and_offset() -> None:
    made, codes, acts = sample(500)
    expected = codes @ dictionary(made) + made.offset.double()
    torch.testing.assert_close(acts, expected, rtol=1e-5, atol=1e-5)
    assert ((acts - expected).pow(2).sum() / (acts - acts.mean(0)).pow(2).sum()).sqrt() < 1e-6
    torch.testing.assert_close(dictionary(made).norm(dim=1), torch.ones(30).double())


def test_directions_are_uniform_on_the_sphere() -> None:
    directions = dictionary(target(features=400, d_in=40))
    cosines = (directions @ directions.T)[*torch.triu_indices(400, 400, 1)]
    assert_mean(cosines, 0.0)
    assert_mean(cosines.pow(2), 1 / 40)
    assert_mean(directions, 0.0)


@pytest.mark.parametrize("size", [0.0, 3.0])
def test_the_offset_is_what_every_token_has(size: float) -> None:
    made, codes, acts = sample(40_000, offset=size)
    assert made.offset.norm().item() == pytest.approx(size)
    along = dictionary(made) @ made.offset.double()
    assert along.abs().max() <= 0.9 * size  # no feature's direction
    assert_mean(acts, made.offset + made.probabilities @ dictionary(made))
    _, same, without = sample(40_000, offset=0.0)
    assert codes.equal(same)
    expected = without + made.offset.double()
    torch.testing.assert_close(acts, expected, rtol=1e-6, atol=1e-6)


def test_a_token_without_features_is_the_offset() -> None:
    made, codes, acts = sample(50, l0=1e-6)
    assert not codes.any()
    assert acts.equal(made.offset.double().expand_as(acts))


def test_noise_is_white_and_leaves_the_codes_alone() -> None:
    made, codes, acts = sample(20_000, noise=0.6)
    _, clean_codes, clean = sample(20_000)
    assert codes.equal(clean_codes)
    noise = acts - clean
    assert_mean(noise, 0.0)
    assert_mean(noise.pow(2).sum(1), 0.36)
    products = noise[:, :, None] * noise[:, None, :]
    assert_mean(products.flatten(1), (torch.eye(16).double() * 0.36 / 16).flatten())
    assert_mean(noise * codes[:, :1] * dictionary(made)[0], 0.0)


# --- Rows ----------------------------------------------------------------------------------

FULL = {"correlation": 0.5, "noise": 0.1}
"""Everything that is drawn"""


@settings(max_examples=30)
@given(
    rows=st.lists(st.integers(0, 50), min_size=1, max_size=6),
    split=st.sampled_from(SPLITS),
    full=st.booleans(),
)
def test_rows_do_not_depend_on_their_company(rows: list[int], split: Split, full: bool) -> None:
    made = target(**(FULL if full else {}))
    for ask in (made.activations, made.codes):
        together = ask(split, torch.tensor(rows)).split(32)
        assert len(together) == len(rows)
        for row, found in zip(rows, together, strict=True):
            assert found.equal(ask(split, torch.tensor([row])))


def test_rows_are_the_same_in_another_process_thread_and_order() -> None:
    rows = torch.arange(20)
    made, again = target(**FULL), target(**FULL)
    expected = made.activations("train", rows)
    assert (
        again.activations("train", rows.flip(0))
        .view(20, 32, 16)
        .flip(0)
        .equal(expected.view(20, 32, 16))
    )
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(made.activations, "train", rows) for _ in range(8)]
        assert all(one.result().equal(expected) for one in asked)


def test_the_number_of_threads_changes_nothing() -> None:
    made = target(tokens_per_row=4096, features=200, **FULL)
    expected = made.activations("train", torch.tensor([3]))
    torch.set_num_threads(2)
    try:
        assert made.activations("train", torch.tensor([3])).equal(expected)
    finally:
        torch.set_num_threads(1)


def test_splits_rows_and_seeds_share_no_token() -> None:
    rows = torch.arange(40)
    made = [target(seed=seed, l0=15.0) for seed in (0, 1, 2**32, 2**63 - 1)]
    parts = [one.codes(split, rows) for one in made for split in SPLITS]
    tokens = torch.cat(parts)
    assert len(tokens.unique(dim=0)) == len(tokens) == 4 * 2 * 40 * 32
    for one, other in pairwise(made):
        assert (dictionary(one) * dictionary(other)).sum(1).abs().max() < 0.99
        assert not one.offset.equal(other.offset)


def test_sizes_types_and_description() -> None:
    made = target()
    assert (made.row_count("train"), made.row_count("held_out")) == (32, 16)
    assert target(train_tokens=1024).row_count("train") == 32
    assert target(train_tokens=1).row_count("train") == 1
    acts = made.activations("held_out", torch.tensor([7, 3]))
    assert (acts.shape, acts.dtype, acts.device) == ((64, 16), torch.float32, CPU)
    assert made.codes("train", torch.tensor([1])).shape == (32, 30)
    assert (made.d_in, made.tokens_per_row, made.has_loss) == (16, 32, False)
    assert json.loads(json.dumps(made.description)) == made.description
    with pytest.raises(RuntimeError, match="no model"):
        made.spliced_losses("train", torch.tensor([0]), torch.clone)


def test_what_is_handed_out_lies_on_the_device() -> None:
    made = Synthetic(NoData(), torch.device("meta"), **SMALL)
    rows = torch.tensor([0])
    for tensor in (dictionary(made), made.codes("train", rows), made.activations("train", rows)):
        assert tensor.device.type == "meta"


# --- Runs ----------------------------------------------------------------------------------

SYNTHETIC = ("target_model=synthetic", "stream.batch_tokens=1024")


def weights(run: Run) -> dict[str, Tensor]:
    return load_file(run.folder / "checkpoint" / "weights.safetensors")


def test_runs_are_the_same_alone_and_packed(tmp_path: Path) -> None:
    methods = ("topk", "relu")
    packed, alone = (
        [small_run(tmp_path / folder, f"method={method}", *SYNTHETIC) for method in methods]
        for folder in ("packed", "alone")
    )
    found = train(*packed)
    for one, other, outcome in zip(packed, alone, found, strict=True):
        train(other)
        assert isinstance(outcome, Result)
        assert 0 < outcome.metrics["fvu"] < 1 and "ce" not in outcome.metrics
        assert one.config.tree["data"] == {"_target_": "sae_sweeps.data.none.NoData"}
        assert weights(one).keys() == weights(other).keys()
        assert all(tensor.equal(weights(other)[name]) for name, tensor in weights(one).items())


def test_a_stream_reads_it_to_the_end_and_no_further(tmp_path: Path) -> None:
    sizes = ("target_model.train_tokens=4096", "target_model.held_out_tokens=1024")
    [outcome] = train(small_run(tmp_path, *SYNTHETIC, *sizes))
    assert isinstance(outcome, Result)
    short = small_run(tmp_path, *SYNTHETIC, "target_model.train_tokens=3840")
    with pytest.raises(ConfigError, match="the data hold 3840 training tokens"):
        train(short)


def test_stream_seeds_reorder_the_same_tokens() -> None:
    """An epoch's tokens, in the unit norm that calibration on all of them sets."""
    made, epochs = target(train_tokens=1024), list[Tensor]()
    for seed in (0, 1):
        given_ = options.StreamOptions(
            batch_tokens=32,
            chunk_tokens=1024,
            seed=seed,
            repeat=False,
            calibration_tokens=1024,
            centre=False,
            special_tokens=False,
            skip_first=0,
            max_norm=None,
        )
        stream = Alone(made, given_, 1)
        epochs.append(stream.unscaled(stream.chunk(0)))
    assert not epochs[0].equal(epochs[1])
    first, second = (epoch[epoch[:, 0].argsort()] for epoch in epochs)
    torch.testing.assert_close(first, second)


@pytest.mark.slow
def test_the_default_tells_frequent_from_rare_features(tmp_path: Path) -> None:
    """A TopK run of default length finds the frequent features, not all of the rare ones."""
    defaults = ("d_sae=1024", "stream.chunk_tokens=32768", "training.tokens=327680")
    made = small_run(tmp_path, "method=topk", "k=8", *SYNTHETIC, *defaults)
    [outcome] = train(made)
    assert isinstance(outcome, Result)
    node = {
        key: value for key, value in made.config.tree["target_model"].items() if key != "_target_"
    }
    directions = dictionary(Synthetic(NoData(), CPU, **node)).float()
    found = torch.nn.functional.normalize(weights(made)["W_dec"], dim=1)
    best = (directions @ found.T).amax(1)
    assert best[:64].mean() > 0.9
    assert best[-64:].mean() < best[:64].mean() - 0.1


# --- Mistakes ------------------------------------------------------------------------------

BAD: list[tuple[dict[str, float], str]] = [
    ({"d_in": 0}, "d_in is 0, expected 1 to 2^26."),
    ({"features": 0}, "features is 0, expected 1 to 2^26."),
    ({"features": 10**12}, "features is 1e+12, expected 1 to 2^26."),
    ({"l0": 0.0}, "l0 is 0, expected more than 0."),
    ({"exponent": -1.0}, "exponent is -1, expected at least 0."),
    ({"shift": -0.5}, "shift is -0.5, expected at least 0."),
    ({"magnitude_sigma": -1.0}, "magnitude_sigma is -1, expected 0 to 10."),
    ({"correlation": 1.0}, "correlation is 1, expected at least 0 and less than 1."),
    ({"correlation": -0.1}, "correlation is -0.1, expected at least 0 and less than 1."),
    ({"group_size": 0}, "group_size is 0, expected at least 1."),
    ({"offset": -2.0}, "offset is -2, expected at least 0."),
    ({"noise": -2.0}, "noise is -2, expected at least 0."),
    ({"seed": -1}, "seed is -1, expected at least 0 and less than 2^63."),
    ({"tokens_per_row": 0}, "tokens_per_row is 0, expected 1 to 2^26."),
    ({"train_tokens": 0}, "train_tokens is 0, expected at least 1."),
    ({"held_out_tokens": 0}, "held_out_tokens is 0, expected at least 1."),
]


def test_rules_know_the_options(tmp_path: Path) -> None:
    config = small_run(tmp_path, "target_model=synthetic").config.tree
    rules.obey(config)
    for changed, expected in BAD:
        wrong = config | {"target_model": config["target_model"] | changed}
        with pytest.raises(ConfigError, match=re.escape(f"target_model.{expected}")):
            rules.obey(wrong)


LINES: dict[str, list[str]] = {
    "target_model.l0 is 7, expected at most target_model.features, which is 6.": [
        "l0=7",
        "features=6",
    ],
    "evaluation.tokens is 32768, expected at most target_model.held_out_tokens, which is 9.": [
        "held_out_tokens=9"
    ],
    "target_model.noise is nan, expected a finite": ["noise=nan"],
    "target_model.featurs is not an option. Did you mean 'features'?": ["featurs=3"],
}


@pytest.mark.parametrize("expected", LINES)
def test_a_mistake_is_refused_in_one_line(
    expected: str,
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    words = [f"target_model.{word}" for word in LINES[expected]]
    assert run("target_model=synthetic", *words) == 1
    assert expected in refusal(capsys, tmp_path)
    assert trainer.runs == []


def test_what_is_just_allowed_trains(run: Callable[..., int], trainer: Trainer) -> None:
    extreme = ["features=6", "l0=6", "d_in=1", "group_size=1000", "offset=0", "correlation=0.999"]
    assert run("target_model=synthetic", *[f"target_model.{word}" for word in extreme]) == 0
    assert len(trainer.runs) == 1


def test_the_most_frequent_feature_is_silent_on_most_tokens(tmp_path: Path) -> None:
    node = small_run(tmp_path, "target_model=synthetic").config.tree["target_model"]
    made = Synthetic(NoData(), CPU, **{k: v for k, v in node.items() if k != "_target_"})
    assert made.probabilities[0] < 0.4
    assert made.probabilities.sum().item() == pytest.approx(made.true_l0)
    assert made.offset.norm() > 0.5
