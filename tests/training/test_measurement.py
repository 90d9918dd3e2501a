"""The group `measure`: what a measurement is given, and what becomes of its figures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import load_file

from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Measurement
from sae_sweeps.measures import Measure, describe
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.training.measurement import new_measurement
from tests.support.small import measure, small_run, train


class Own(Measurement):
    """FVU and loss once more, by other means, and the bias that is saved."""

    measures = (Measure("own_fvu", "FVU"), Measure("own_ce", "CE"), Measure("bias", "bias"))

    def figures(self, sae: Any, acts: Any, target: Any) -> dict[str, Any]:
        assert not sae.training and not torch.is_grad_enabled()
        recon = sae(acts, torch.zeros(len(sae.W_dec), dtype=torch.bool)).recon
        unexplained = (acts - recon).pow(2).sum() / (acts - acts.mean(0)).pow(2).sum()
        rows = torch.arange(2)
        clean = target.spliced_losses("held_out", rows, torch.clone).ce.mean()
        return {"own_fvu": unexplained, "own_ce": clean, "bias": sae.b_dec.abs().mean()}


class Some(Measurement):
    """One figure of three, and one that is none."""

    measures = Own.measures

    def figures(self, sae: Any, acts: Any, target: Any) -> dict[str, float]:
        return {"own_fvu": 0.5, "own_ce": float("nan")}


class Typo(Measurement):
    """A figure that it does not declare, until it is mended."""

    measures = Own.measures
    name: ClassVar[str] = "own_fvuu"

    def figures(self, sae: Any, acts: Any, target: Any) -> dict[str, float]:
        return {self.name: 0.5}


class Badly(Own):
    """A measurement that a test gives its names."""


def run_with(folder: Path, kind: type[Measurement], *words: str) -> Run:
    run = small_run(folder, *words)
    return of_measure(run, {"_target_": f"{__name__}.{kind.__name__}"})


def of_measure(run: Run, node: dict[str, Any]) -> Run:
    return replace(run, config=replace(run.config, nodes=run.config.nodes | {"measure": node}))


def result_of(run: Run) -> dict[str, Any]:
    return json.loads((run.folder / "result.json").read_text())


@pytest.mark.parametrize("centre", ["false", "true"])
def test_it_sees_the_saved_sae_the_held_out_tokens_and_the_model(
    tmp_path: Path, centre: str
) -> None:
    run = run_with(tmp_path, Own, f"stream.centre={centre}")
    train(run)
    result = result_of(run)
    metrics = result["metrics"]
    assert metrics["own_fvu"] == pytest.approx(metrics["fvu"], rel=1e-3)
    assert 1 < metrics["own_ce"] < 8
    saved = load_file(run.folder / "checkpoint" / "weights.safetensors")
    assert metrics["bias"] == pytest.approx(saved["b_dec"].abs().mean().item(), rel=1e-6)
    assert result["measures"] == {own.name: describe(own) for own in Own.measures}
    exported = json.loads((run.folder / "sae" / "cfg.json").read_text())
    assert exported["metadata"]["sae_sweeps"]["metrics"] == metrics


@pytest.mark.slow
def test_measuring_anew_gives_what_training_would(tmp_path: Path) -> None:
    plain, measured = small_run(tmp_path / "plain"), run_with(tmp_path / "measured", Own)
    train(plain)
    train(measured)
    [anew] = measure(of_measure(plain, measured.config.nodes["measure"]))
    assert isinstance(anew, Result)
    wanted = measured.files.result()
    assert anew.measures == wanted.measures and anew.config == wanted.config
    assert anew.metrics == pytest.approx(wanted.metrics, rel=1e-4)


def test_measuring_anew_without_it_leaves_nothing_of_it(tmp_path: Path) -> None:
    run, plain = run_with(tmp_path, Own), small_run(tmp_path)
    train(run)
    [anew] = measure(plain)
    assert isinstance(anew, Result)
    assert anew.measures == () and "own_fvu" not in anew.metrics


def test_figures_may_be_lacking_and_what_is_no_number_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(tmp_path, Some)
    train(run)
    result = result_of(run)
    assert {"own_fvu", "own_ce", "bias"} & result["metrics"].keys() == {"own_fvu"}
    assert result["measures"].keys() == {"own_fvu", "own_ce", "bias"}
    assert "own_ce is nan: it is left out" in caplog.text


def test_a_mistake_in_it_costs_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, Typo)
    [error] = train(run)
    text = "Typo gives 'own_fvuu', expected of own_fvu, own_ce, bias. Did you mean 'own_fvu'?"
    assert str(error) == text
    assert text in json.loads((run.folder / "failed.json").read_text())["error"]
    monkeypatch.setattr(Typo, "name", "own_fvu")
    [outcome] = train(run)
    assert isinstance(outcome, Result) and outcome.metrics["own_fvu"] == 0.5
    assert "resumed at 4096 tokens" in (run.folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("fvu", "Badly declares 'fvu', a figure that every run has."),
        ("tokens", "declares 'tokens', which is another column of pareto.csv."),
        ("allocator", "declares 'allocator', which is another column"),
        ("batch_gap", "declares 'batch_gap', which is another column"),
        ("my/gap", "declares 'my/gap', expected letters, digits and '_', as in my_figure."),
        ("bias", "declares 'bias', twice."),
    ],
)
def test_a_name_that_is_not_its_own_is_refused(
    name: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Badly, "measures", (*Own.measures, Measure(name, "title")))
    with pytest.raises(ConfigError, match="measure: ") as refused:
        new_measurement({"_target_": f"{__name__}.Badly"})
    assert expected in str(refused.value)
