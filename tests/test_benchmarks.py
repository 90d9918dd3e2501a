"""What the engine benchmark's figures rest on: turns, paired ratios, clocks that add up."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from sae_sweeps import gemm
from tests.benchmarks import engine_profile, engine_rounds
from tests.benchmarks.engine_profile import Clock, breakdown
from tests.benchmarks.engine_rounds import (
    Contender,
    interleaved,
    paired,
    typical,
)
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
    monkeypatch.setattr("sae_sweeps.pre_acts.PIECE", 128)
    monkeypatch.setattr("sae_sweeps.pre_acts.TOKENS", 4)
    monkeypatch.setattr(engine_profile, "ROUNDS", 3)
    spent = breakdown(case | {"methods": ["token"], "home": str(tmp_path), "d_sae": 64})["token"]
    assert spent["encoder product"] == pytest.approx(40, rel=0.2)  # 16 tokens, 4 at a time
    assert spent["the product alone"] == pytest.approx(10, rel=0.2)
    assert 0 < spent["selection"] < 8 and "sparse products" in spent


def test_made_activations_have_the_stated_scale() -> None:
    """E|x|^2 = d_in, with a mean that is not 0 and one batch unlike the next."""
    acts = synthesise(6000, 32)
    assert acts.pow(2).sum(1).mean().item() == pytest.approx(32, rel=1e-4)
    assert acts.mean(0).norm() > 1
    assert not acts[:16].equal(acts[4096:4112])


def _work(seconds: float) -> None:
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass
