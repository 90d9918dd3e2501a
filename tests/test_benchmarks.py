"""What the engine benchmark's figures rest on: turns, paired ratios, clocks that add up."""

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from sae_sweeps.engine import gemm
from tests.benchmarks import engine_profile, engine_report, engine_rounds, engine_training
from tests.benchmarks.engine_profile import Clock, breakdown
from tests.benchmarks.engine_rounds import (
    Contender,
    interleaved,
    paired,
    typical,
)
from tests.benchmarks.engine_training import bitwise, quality, raced, reach, reached
from tests.benchmarks.engine_worker import synthesise

TINY: dict[str, Any] = {
    "d_in": 8,
    "d_sae": 32,
    "k": 2,
    "lr": 1e-3,
    "batch": 16,
    "forward": False,
    "chunk_batches": 2,
    "tracking": "off",
    "method": "token",
}
MACHINE: dict[str, Any] = {
    "cpu": "CPU",
    "cores": 1,
    "instructions": "AVX2",
    "wait_policy": "PASSIVE",
    "torch": "2",
    "libraries": [],
    "gemm": "oneDNN",
}


@pytest.fixture
def case(tmp_path: Path) -> dict[str, Any]:
    """A case of a size for tests."""
    np.save(tmp_path / "acts.npy", synthesise(24000, 8).numpy())
    return TINY | {"data": str(tmp_path / "acts.npy")}


def test_ratios_are_paired_within_rounds() -> None:
    """Each round is compared with itself: not so the median costs, whose rounds may differ."""
    costs = {"one": [2.0, 30.0, 5.0], "other": [1.0, 10.0, 5.0]}
    spent = {name: [{"cpu_s": cost} for cost in own] for name, own in costs.items()}
    assert paired(spent, "one", "other") == 2
    assert typical(spent, "one") / typical(spent, "other") == 1


@pytest.mark.slow
def test_contenders_take_turns(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answers every round; one that cannot start is left out, and says why."""
    monkeypatch.setattr(engine_rounds, "LIMIT_S", 60.0)
    home = tmp_path / "home"
    home.mkdir()
    contenders = [
        Contender("ours", case),
        Contender("dense", case),
        Contender("broken", case | {"worker": "dense", "data": "none.npy"}),
    ]
    spent, failed = interleaved(contenders, steps=2, rounds=2, home=home)
    assert {name: len(costs) for name, costs in spent.items()} == {"ours": 2, "dense": 2}
    assert all(cost["cpu_s"] > 0 for costs in spent.values() for cost in costs)
    assert "none.npy" in failed.pop("broken")
    assert not failed


def test_time_is_counted_once() -> None:
    """What is inside of another kind of work is taken off it."""
    clock = Clock()
    began = time.process_time()
    with clock.counting("outer"):
        _work(0.02)
        with clock.counting("inner"):
            _work(0.04)
    spent = time.process_time() - began
    assert clock.spent["inner"] == pytest.approx(0.04, rel=0.2)
    assert clock.spent["outer"] == pytest.approx(0.02, rel=0.2)
    assert clock.spent["inner"] + clock.spent["outer"] == pytest.approx(spent, abs=0.002)


def test_products_are_told_apart_from_the_selection_that_makes_them(
    case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In pieces, too; each of which is made to last."""
    product = gemm.product

    def slow(*matrices: Tensor) -> Tensor:
        _work(0.01)
        return product(*matrices)

    monkeypatch.setattr(gemm, "product", slow)
    monkeypatch.setattr("sae_sweeps.engine.pre_acts.PIECE", 128)
    monkeypatch.setattr("sae_sweeps.engine.pre_acts.TOKENS", 4)
    monkeypatch.setattr(engine_profile, "ROUNDS", 3)
    spent = breakdown(case | {"methods": ["token"], "home": str(tmp_path), "d_sae": 64})["token"]
    assert spent["encoder product"] == pytest.approx(40, rel=0.2)  # 16 tokens, 4 at a time
    assert spent["the product alone"] == pytest.approx(10, rel=0.2)
    assert 0 < spent["selection"] < 20  # with its products it would be 40 more
    assert "sparse products" in spent


def test_made_activations_have_the_stated_scale() -> None:
    """E|x|^2 = d_in, with a mean that is not 0 and one batch unlike the next."""
    acts = synthesise(6000, 32)
    assert acts.pow(2).sum(1).mean().item() == pytest.approx(32, rel=1e-4)
    assert acts.mean(0).norm() > 1
    assert not acts[:16].equal(acts[4096:4112])


@pytest.fixture
def short(case: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A case whose whole runs are a few steps of two methods."""
    words = "d_sae=32", "k=2", "stream.repeat=true", "evaluation.ce_tokens=0"
    two = {method: engine_training.METHODS[method] for method in ("token", "jumprelu")}
    monkeypatch.setattr(engine_training, "SMALL_RUNS", words)
    monkeypatch.setattr(engine_training, "METHODS", two)
    monkeypatch.setattr(engine_training, "SEEDS", (0, 1))
    monkeypatch.setattr(engine_training, "REACH_STEPS", 20)
    return case | {"home": str(tmp_path), "d_sae": 32}


@pytest.mark.slow
def test_quality_is_told_by_method_learning_rate_and_seed(
    short: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each learning rate changes the FVU, the engine hardly does; every figure is kept."""
    monkeypatch.delitem(engine_training.METHODS, "jumprelu")
    rows = quality(short)["token"]
    default = rows[2]["lr"]
    rates = [factor * default for factor in (1 / 3, 1 / 3, 1, 1, 3, 3)]
    assert [row["lr"] for row in rows] == pytest.approx(rates)
    assert [row["seed"] for row in rows] == [0, 1] * 3
    assert all(row["sparse"] == pytest.approx(row["dense"], rel=0.01) for row in rows)
    assert len({row["dense"] for row in rows}) == len(rows)


def test_quality_is_judged_by_the_mean_difference() -> None:
    """Seeds that differ both ways may each differ by more than the mean is allowed to."""
    both = [
        {"lr": 1e-3, "seed": seed, "dense": 0.5, "sparse": sparse}
        for seed, sparse in enumerate((0.496, 0.505))
    ]
    less = [{"lr": 3e-3, "seed": 0, "dense": 0.5, "sparse": 0.497}]
    lines = engine_report.quality({"token": [*both, *less]})
    assert "| token | 1e-03 | 0.5000 / 0.5005 | +0.10% | +1.00% | ≤ 0.5: yes (%) |" in lines
    assert "| token | 3e-03 | 0.5000 / 0.4970 | -0.60% | -0.60% | ≤ 0.5: no (%) |" in lines


def test_a_fixed_fvu_is_reached_by_the_mean_of_steps() -> None:
    """Not by one that happens to be low."""
    curve = [(fvu, 1.0) for fvu in (0.9, 0.9, 0.9, 0.1, 0.9, 0.5, 0.5, 0.5)]
    assert reached(curve, 0.6) == 7  # (0.9 + 0.1 + 0.9 + 0.5 + 0.5) / 5 is 0.58, before it 0.66
    assert reached(curve, 0.4) is None
    assert reached(curve[:4], 1.0) is None


def test_contenders_race_until_the_dense_run_s_last_tenth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faster one has its first steps counted alone; one that stays behind is given up."""
    monkeypatch.setattr(engine_training, "REACH_STEPS", 20)

    def falling(by: float, seconds: float) -> Iterator[tuple[float, float]]:
        return ((1 - by * step, seconds) for step in count(1))

    racing = {"dense": falling(0.01, 4), "sparse": falling(0.02, 1), "reference": falling(0, 9)}
    found = raced(racing, batch=10)
    assert found["goal"] == pytest.approx(1 - 0.195)
    taken = found["taken"]
    assert (taken["dense"]["tokens"], taken["dense"]["cpu_s"]) == (220, 88)
    assert (taken["sparse"]["tokens"], taken["sparse"]["cpu_s"]) == (120, 12)
    assert "tokens" not in taken["reference"] and taken["reference"]["cpu_s"] == 9 * 40
    lines = engine_report.reach({"token": {"lr": 3e-3, **found}})
    assert "| token | `engine=dense` | 0.8050 | 0.8000 | 220 | 88.0 | 7.33 |" in lines
    assert any("| not reached | 360.0 | > 30.00 |" in line for line in lines)


def test_engines_reach_the_same_fvu(short: dict[str, Any]) -> None:
    """With about as many tokens, at the default learning rate; the reference trains, too."""
    race = reach(short | {"methods": ["token"], "batch": 512})["token"]
    taken = race["taken"]
    assert list(taken) == ["dense", "sparse", "reference"]
    assert abs(taken["sparse"]["tokens"] - taken["dense"]["tokens"]) <= 512
    assert all(row["cpu_s"] > 0 for row in taken.values())
    assert taken["reference"]["fvu"] < 1


def test_weights_are_compared_by_their_bytes(short: dict[str, Any]) -> None:
    """Company changes nothing, another seed does; a table says whether that is wanted."""
    found = bitwise(short)
    expected = {"again": True, "packed": True, "other_seed": False}
    assert found == {"token": expected, "jumprelu": expected}
    lines = engine_report.bitwise({**found, "relu": expected | {"packed": False}})
    assert "| token | yes | yes | no | yes |" in lines
    assert "| relu | yes | no | no | no |" in lines


def test_a_pack_s_forward_pass_is_told_apart() -> None:
    """As what it adds to runs on saved activations; not where one of the two is missing."""
    names = "12 runs, float32 forward", "12 runs, saved activations"
    costs = [
        {"name": name, "cpu_ms": cpu, "wall_ms": cpu + 10}
        for name, cpu in zip(names, (2951, 1719), strict=True)
    ]
    found = {"machine": MACHINE, "peers": {"versions": {}, "trouble": None}} | {
        "measured": {"sweep": {"rounds": 1, "load_before": 1.0, "load_after": 1.0}}
    }
    told = engine_report.table(found | {"sweep": {"costs": costs, "ratios": [], "missing": {}}})
    assert "| the forward pass that the 12 share, float32 | 1,232 | 1,232 |" in told
    assert "share, bfloat16" not in told
    told = engine_report.table(found | {"sweep": {"costs": costs[:1], "ratios": [], "missing": {}}})
    assert "share, float32" not in told


def _work(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
