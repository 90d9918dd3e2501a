"""Metrics against naive numpy versions, and the mistakes that other code bases make."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.training import metrics
from sae_sweeps.training.metrics import Measured, Products

torch.set_num_threads(1)

ACTS = st.tuples(st.integers(0, 9999), st.integers(1, 60), st.integers(1, 5))


def made(seed: int, tokens: int, d_in: int, d_sae: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Activations with a mean far from 0, a reconstruction, sparse codes."""
    generator = torch.Generator().manual_seed(seed)
    x = 5 + torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    recon = x + 0.3 * torch.randn(tokens, d_in, generator=generator, dtype=torch.float64)
    codes = (torch.randn(tokens, d_sae, generator=generator) - 0.5).relu()
    codes[:, 0] = 0.0
    codes[:, -1] = 1.0
    return x, recon, codes


def measured(x: Tensor, recon: Tensor, codes: Tensor, mean: Tensor | None = None) -> Measured:
    mean = x.mean(0) if mean is None else mean
    return Measured(
        l0=(codes > 0).sum(1).float(),
        error=(x - recon).pow(2).sum(1),
        plain=products(x, recon),
        centred=products(x - mean, recon - mean),
        fired=(codes > 0).sum(0),
    )


def products(x: Tensor, recon: Tensor) -> Products:
    return Products((x * x).sum(1), (recon * recon).sum(1), (x * recon).sum(1))


def latents_alone(tokens: int, fired: Tensor) -> Measured:
    ones = torch.ones(1).expand(tokens)  # takes no memory
    same = Products(ones, ones, ones)
    return Measured(ones, ones, same, same, fired)


@settings(deadline=None)
@given(ACTS, st.floats(0.01, 100))
def test_summary_against_numpy(shape: tuple[int, int, int], scale: float) -> None:
    seed, tokens, d_in = shape
    x, recon, codes = made(seed, tokens + 1, d_in)
    got = metrics.summary(measured(x, recon, codes), d_in, scale)
    X, R, C = x.numpy(), recon.numpy(), codes.numpy()
    l0 = (C > 0).sum(1)
    assert got["l0"] == pytest.approx(l0.mean())
    for name, quantile in (("l0_p5", 0.05), ("l0_median", 0.5), ("l0_p95", 0.95), ("l0_max", 1)):
        assert got[name] == pytest.approx(np.quantile(l0, quantile)), name
    assert got["fvu"] == pytest.approx(((X - R) ** 2).sum() / ((X - X.mean(0)) ** 2).sum())
    assert got["mse"] == pytest.approx(((X / scale - R / scale) ** 2).mean())
    norms = np.linalg.norm(X, axis=1) * np.linalg.norm(R, axis=1)
    assert got["cosine"] == pytest.approx(((X * R).sum(1) / norms).mean())
    centre = X.mean(0)
    assert got["gamma"] == pytest.approx((R**2).mean() / (X * R).mean())
    centred = ((R - centre) ** 2).sum() / ((X - centre) * (R - centre)).sum()
    assert got.get("gamma_centred", centred) == pytest.approx(centred)
    density = (C > 0).mean(0)
    due = l0.mean() / (np.arange(12) + 1) / (1 / (np.arange(12) + 1)).sum()
    falling = np.sort(density)[::-1]
    below = [d < 0.1 * min(1, z) or d == 0 for d, z in zip(falling, due, strict=True)]
    assert got["underused_frac"] == pytest.approx(np.mean(below))
    assert got["dead_frac"] == pytest.approx((density == 0).mean())
    for rare in metrics.RARE:
        assert got[f"below_{rare}"] == pytest.approx((density < float(rare)).mean())
    assert all(math.isfinite(figure) for figure in got.values())


@settings(deadline=None)
@given(ACTS, st.data())
def test_sums_add_over_batches(shape: tuple[int, int, int], data: st.DataObject) -> None:
    seed, tokens, d_in = shape
    x, recon, codes = made(seed, tokens + 1, d_in)
    cuts = sorted(data.draw(st.lists(st.integers(1, tokens), max_size=4, unique=True)))
    mean = x.mean(0)
    split = [whole.tensor_split(cuts) for whole in (x, recon, codes)]
    parts = [measured(x_, recon_, codes_, mean) for x_, recon_, codes_ in zip(*split, strict=True)]

    def gathered(kind: str) -> Products:
        found = [vars(getattr(part, kind)) for part in parts]
        return Products(**{name: torch.cat([each[name] for each in found]) for name in found[0]})

    joined = Measured(
        l0=torch.cat([part.l0 for part in parts]),
        error=torch.cat([part.error for part in parts]),
        plain=gathered("plain"),
        centred=gathered("centred"),
        fired=torch.stack([part.fired for part in parts]).sum(0),
    )
    whole = metrics.summary(measured(x, recon, codes), d_in, 1.0)
    assert metrics.summary(joined, d_in, 1.0) == pytest.approx(whole)
    error = sum(part.error.sum().item() for part in parts)
    assert whole["fvu"] == pytest.approx(error / sum(part.centred.x.sum().item() for part in parts))


def test_fvu_is_0_for_identity_and_1_for_the_mean() -> None:
    x, _, codes = made(1, 50, 4)
    assert metrics.summary(measured(x, x, codes), 4, 1.0)["fvu"] == 0
    assert metrics.summary(measured(x, x, codes), 4, 1.0)["cosine"] == pytest.approx(1)
    mean = x.mean(0).expand_as(x)
    assert metrics.summary(measured(x, mean, codes), 4, 1.0)["fvu"] == pytest.approx(1)


@settings(deadline=None)
@given(st.floats(-3, 3))
def test_a_constant_offset_is_not_centred_away(offset: float) -> None:
    x, _, codes = made(2, 80, 4)
    figures = metrics.summary(measured(x, x + offset, codes), 4, 1.0)
    variance = x.var(0, correction=0).sum().item()
    assert figures["fvu"] == pytest.approx(4 * offset**2 / variance, abs=1e-12)
    assert figures["mse"] == pytest.approx(offset**2, abs=1e-12)


def test_fvu_does_not_gain_by_a_large_mean() -> None:
    x, recon, codes = made(3, 80, 4)
    near = metrics.summary(measured(x, recon, codes), 4, 1.0)["fvu"]
    far = metrics.summary(measured(x + 1e4, recon + 1e4, codes), 4, 1.0)["fvu"]
    assert far == pytest.approx(near, rel=1e-6)


def test_mse_does_not_depend_on_the_number_of_tokens() -> None:
    x, recon, codes = made(4, 64, 4)
    once = metrics.summary(measured(x, recon, codes), 4, 2.0)
    twice = metrics.summary(
        measured(x.repeat(32, 1), recon.repeat(32, 1), codes.repeat(32, 1)), 4, 2.0
    )
    assert twice["mse"] == pytest.approx(once["mse"])
    assert twice["fvu"] == pytest.approx(once["fvu"])


def test_sums_of_many_float32_terms_keep_their_digits() -> None:
    tokens = 1_000_000  # a float32 running sum would stop growing or lose digits
    ones = torch.full((tokens,), 0.1)
    triple = Products(3 * ones, 0.3 * ones, ones)
    fired = torch.ones(3, dtype=torch.int64)
    many = Measured(torch.full((tokens,), 16.1), ones, triple, triple, fired)
    figures = metrics.summary(many, 1, 1.0)
    assert figures["fvu"] == pytest.approx(1 / 3, rel=1e-6)
    assert figures["l0"] == pytest.approx(16.1, rel=1e-6)
    assert figures["mse"] == pytest.approx(0.1, rel=1e-6)
    assert figures["gamma"] == pytest.approx(0.3, rel=1e-6)


@pytest.mark.parametrize("tokens", [1, 3, 10, 11, 57, 100])
def test_deciles_cover_all_tokens_from_the_lowest_l0_to_the_highest(tokens: int) -> None:
    x, recon, codes = made(tokens, tokens + 1, 3)
    given_ = measured(x[:tokens], recon[:tokens], codes[:tokens], x.mean(0))
    rows = metrics.fvu_by_l0_decile(given_)
    order = np.argsort(given_.l0.numpy(), kind="stable")
    groups = [group for group in np.array_split(order, 10) if len(group)]
    assert sum(map(len, groups)) == tokens and len(rows) == len(groups) == min(10, tokens)
    for row, group in zip(rows, groups, strict=True):
        assert row["l0"] == pytest.approx(given_.l0.numpy()[group].mean())
        error, spread = given_.error.numpy()[group], given_.centred.x.numpy()[group]
        assert row["fvu"] == pytest.approx(error.sum() / spread.sum())
    assert [row["l0"] for row in rows] == sorted(row["l0"] for row in rows)


@settings(deadline=None)
@given(
    tokens=st.integers(1, 10**8),
    shares=st.lists(st.floats(0, 1) | st.floats(0, 1e-6), min_size=1, max_size=30),
)
def test_histogram_counts_every_latent_once_in_its_bin(tokens: int, shares: list[float]) -> None:
    fired = [round(share * tokens) for share in shares] + [0, tokens]
    histogram = metrics.density_histogram(latents_alone(tokens, torch.tensor(fired)))
    counts, edges = histogram["counts"], histogram["log10_edges"]
    assert sum(counts) == len(fired) and len(counts) == len(edges) - 1 == 24
    expected = np.zeros(24)
    for count in fired:
        place = (math.log10(count / tokens) + 6) / 0.25 if count else 0.0
        if 0 < place < 24 and abs(place - round(place)) < 1e-6:
            return  # on an edge, where rounding decides
        expected[min(max(int(place), 0), 23)] += 1
    assert counts == expected.tolist()


def test_histogram_takes_in_every_density_a_run_can_have() -> None:
    for tokens in (1, 7, 1000, 32768, 10**6):
        fired = torch.unique(torch.linspace(0, tokens, 3000).round().long().clamp(0, tokens))
        counts = metrics.density_histogram(latents_alone(tokens, fired))["counts"]
        assert sum(counts) == len(fired)
        assert counts[0] >= 1 and counts[-1] >= 1


@settings(deadline=None)
@given(st.lists(st.integers(0, 5) | st.integers(0, 3000), min_size=1, max_size=50))
def test_tokens_are_counted_by_their_l0(l0s: list[int]) -> None:
    tokens = torch.tensor(l0s, dtype=torch.float32)
    same = Products(tokens, tokens, tokens)
    found = metrics.l0_histogram(Measured(tokens, tokens, same, same, torch.zeros(3).long()))
    edges, counts = found["edges"], found["counts"]
    bins = list(pairwise(edges))
    assert counts == [sum(low <= l0 < high for l0 in l0s) for low, high in bins]
    assert sum(counts) == len(l0s) and len(counts) <= metrics.L0_BINS
    widths = {high - low for low, high in bins}
    assert len(widths) == 1 and edges[0] == 0 and edges[-1] > max(l0s)
    assert widths == {1} or max(l0s) >= metrics.L0_BINS


def test_ce_recovered() -> None:
    assert metrics.ce_recovered(2.0, 2.0, 7.0) == 1
    assert metrics.ce_recovered(2.0, 7.0, 7.0) == 0
    assert metrics.ce_recovered(2.0, 3.0, 7.0) == pytest.approx(0.8)
    assert metrics.ce_recovered(2.0, 12.0, 7.0) == pytest.approx(-1)  # worse than nothing
    assert metrics.ce_recovered(2.0, 2.0, 2.05) is None  # would divide by noise
    assert metrics.ce_recovered(2.0, 2.0, 1.0) is None
    assert metrics.ce_recovered(2.0, 2.0, 2.0) is None


def test_dead_frac_counts_latents_that_never_fired() -> None:
    assert metrics.dead_frac(torch.tensor([0, 1, 0, 5])) == 0.5
    assert metrics.dead_frac(torch.tensor([3])) == 0


@settings(deadline=None)
@given(ACTS, st.floats(0.05, 20), st.floats(1e-3, 1e3))
def test_gamma_is_the_gain_and_does_not_depend_on_the_unit(
    shape: tuple[int, int, int], gain: float, unit: float
) -> None:
    seed, tokens, d_in = shape
    x, recon, codes = made(seed, tokens + 1, d_in)
    assert metrics.gamma(products(x, x)) == 1
    assert metrics.gamma(products(unit * x, unit * gain * x)) == pytest.approx(gain)
    mean = x.mean(0)
    shrunk = mean + gain * (x - mean)
    assert metrics.summary(measured(x, shrunk, codes), d_in, 1.0)["gamma_centred"] == pytest.approx(
        gain
    )
    found = metrics.gamma(products(x, recon))
    assert found is not None
    best = min(np.linspace(0.5, 2, 301), key=lambda g: ((recon / g - x) ** 2).sum().item())
    assert found == pytest.approx(best, abs=0.005)  # Eq. 10's own definition: the argmin


def test_gamma_of_a_large_mean_hides_what_the_centred_one_shows() -> None:
    x, _, codes = made(5, 80, 4)
    x = x + 100
    mean = x.mean(0)
    figures = metrics.summary(measured(x, mean + 0.5 * (x - mean), codes), 4, 1.0)
    assert figures["gamma"] == pytest.approx(1, abs=1e-3)
    assert figures["gamma_centred"] == pytest.approx(0.5)


def test_gamma_is_left_out_where_it_would_divide_by_noise() -> None:
    x, _, codes = made(6, 80, 4)
    x = x.float()
    zeros = torch.zeros_like(x)
    for recon in (x.mean(0).expand_as(x), zeros, zeros + 0.3):
        figures = metrics.summary(measured(x, recon, codes), 4, 1.0)
        assert "gamma_centred" not in figures
        assert ("gamma" in figures) == bool(recon.any())
        assert all(math.isfinite(figure) for figure in figures.values())
    assert metrics.gamma(products(x, -x)) is None
    assert metrics.summary(measured(x, zeros, codes), 4, 1.0)["cosine"] == 0


def test_underused_latents_of_a_known_case() -> None:
    """Densities of an example of aux_zipf: the weights at threshold 0.1 are positive for six."""
    fired = torch.tensor([5000, 3000, 2000, 1000, 500, 100, 30, 10, 1, 0, 0, 0])
    density, l0 = fired / 1e4, 1.1641
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert metrics.underused_frac(density[order].double(), l0) == 6 / 12


def test_underused_latents_at_the_ends() -> None:
    law = 0.5 / torch.arange(1, 41, dtype=torch.float64)
    for share, underused in ((1.0, 0), (0.101, 0), (0.099, 1)):
        assert metrics.underused_frac(share * law, law.sum().item()) == underused
    assert metrics.underused_frac(torch.zeros(7, dtype=torch.float64), 0.0) == 1
    # The first ranks can fire on every token at most, so that none is underused here.
    assert metrics.underused_frac(torch.ones(3, dtype=torch.float64), 30.0) == 0
    tail = torch.tensor([1.0, *[0.0] * 9], dtype=torch.float64)
    assert metrics.underused_frac(tail, 1.0) == 0.9
