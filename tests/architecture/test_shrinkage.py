"""Feature suppression and its cure, by real training on data whose truth is known (METHODS 2.9)."""

from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.record.result import Result
from tests.support.small import small_run, train
from tests.support.unchecked import unchecked

TOY = [
    "target_model=synthetic",
    *("target_model.d_in=32", "target_model.features=192", "target_model.l0=5"),
    *("target_model.offset=0", "d_sae=256", "stream.chunk_tokens=16384"),
    *("training.tokens=393216", "optimizer.lr=2e-3", "schedule.decay_tokens=196608"),
    *("evaluation.tokens=16384", "stream.calibration_tokens=16384"),
]
RUNS = {
    "relu 45": ["method=relu", "k=45"],
    "relu 30": ["method=relu", "k=30"],
    "relu 15": ["method=relu", "k=15"],
    "relu 30, scale": ["method=relu", "k=30", "fine_tune=scale"],
    "gated 30": ["method=gated", "k=30"],
    "jumprelu 30": ["method=jumprelu", "k=30"],
}


# One worker trains them for all tests.
pytestmark = pytest.mark.xdist_group("shrinkage")


@pytest.fixture(scope="module")
def figures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("toy")
    runs = [small_run(folder, *TOY, *overrides) for overrides in RUNS.values()]
    found: dict[str, dict[str, Any]] = {}
    with unchecked():
        outcomes = train(*runs)
    for name, outcome in zip(RUNS, outcomes, strict=True):
        assert isinstance(outcome, Result), outcome
        found[name] = outcome.metrics
    return found


@pytest.mark.slow
def test_runs_are_compared_at_the_l0_they_should_have(figures: dict[str, dict[str, Any]]) -> None:
    for name, found in figures.items():
        k = float(name.split()[1].rstrip(","))
        assert found["l0"] == pytest.approx(k, rel=0.1), name


@pytest.mark.slow
def test_relu_shrinks_the_more_the_stronger_its_penalty(figures: dict[str, dict[str, Any]]) -> None:
    weak, middle, strong = (figures[f"relu {k}"]["gamma"] for k in (45, 30, 15))
    assert 0.95 > weak > middle + 0.02 and middle > strong + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("method", ["gated 30", "jumprelu 30"])
def test_gated_and_jumprelu_hardly_shrink(method: str, figures: dict[str, dict[str, Any]]) -> None:
    assert figures[method]["gamma"] == pytest.approx(1, abs=0.02)
    assert figures[method]["fvu"] < figures["relu 30"]["fvu"] / 2


@pytest.mark.slow
def test_the_scale_mends_part_of_it(figures: dict[str, dict[str, Any]]) -> None:
    before, after = figures["relu 30"], figures["relu 30, scale"]
    assert after["l0"] == before["l0"]
    assert before["gamma"] + 0.05 < after["gamma"] < 1
    assert figures["gated 30"]["fvu"] < after["fvu"] < 0.95 * before["fvu"]
