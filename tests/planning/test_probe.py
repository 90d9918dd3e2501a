"""What a plan tries on this machine, against what a sweep then takes."""

import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from sae_sweeps.planning import probe
from sae_sweeps.planning.probe import Probe
from sae_sweeps.target_model import facts
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import new_trainer
from tests.support.commands import Trainer, command, refusal, trainer
from tests.support.places import ROOT
from tests.support.small import Quiet, small_run

__all__ = ["trainer"]  # a fixture


@pytest.mark.parametrize("method", ["relu", "gated", "jumprelu", "topk"])
def test_as_many_latents_fire_as_will_later(method: str) -> None:
    """Untrained, half of a ReLU's latents fire, and a step is slower than it is ever after."""
    config = small_run(Path(), f"method={method}", "d_sae=512", "k=8").config
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator)
    sae = new_sae(config, 64)
    sae.initialise(generator, torch.zeros(64))
    trainer = new_trainer(config, sae)
    if method == "relu":
        assert sae(x, trainer.dead).acts.l0() > 100
    probe._thin_out(trainer, x, 8.0)  # pyright: ignore[reportPrivateUsage]
    assert 6 <= sae(x, trainer.dead).acts.l0() <= probe.NEAR * 8


def test_every_kind_of_run_is_tried_once(tmp_path: Path) -> None:
    """Seeds and learning rates do not change the time of a step."""
    words = [["seed=0"], ["seed=1"], ["method=relu"], ["method=relu", "seed=1"]]
    runs = [small_run(tmp_path, *own) for own in words]
    found = Probe(runs, Quiet(), time.monotonic())
    assert len(found._steps) == 2  # pyright: ignore[reportPrivateUsage]
    times = [found.step_s(run.config, 128) for run in runs]
    assert times[0] == times[1] > 0 and times[2] == times[3] > 0
    assert found.evaluation_s(runs[0].config, 128) > 0
    activation_s, prediction_s = (
        tried(runs[0].config) for tried in (found.activation_s, found.prediction_s)
    )
    assert activation_s is not None and prediction_s is not None
    assert 0 < activation_s < prediction_s  # it goes deeper, and has logits
    assert list(tmp_path.iterdir()) == []


def test_activations_of_no_model_have_no_predictions(tmp_path: Path) -> None:
    run = small_run(tmp_path, "target_model=synthetic")
    found = Probe([run], Quiet(), time.monotonic())
    assert found.prediction_s(run.config) == 0.0
    assert (found.activation_s(run.config) or 0) > 0


def test_a_model_that_is_not_here_is_not_fetched_and_goes_by_its_size(tmp_path: Path) -> None:
    config = json.loads((facts.EMBEDDED / "config.json").read_text())
    for name, layers in (("small", 4), ("large", 40)):
        (tmp_path / name).mkdir()
        text = json.dumps({**config, "n_layer": layers})
        (tmp_path / name / "config.json").write_text(text)
    words = ["target_model=transformer_lens", "data=embedded"]
    hooks = {"small": "blocks.0.hook_resid_post", "large": "blocks.9.hook_resid_post"}
    runs = [
        small_run(
            tmp_path,
            *words,
            f"target_model.model={tmp_path / name}",
            f"target_model.hook={hook}",
        )
        for name, hook in hooks.items()
    ]
    times: list[Any] = []
    for run in runs:
        found = Probe([run], Quiet(), time.monotonic())
        times.append((found.activation_s(run.config), found.prediction_s(run.config)))
    assert times[1][0] / times[0][0] == pytest.approx(10, rel=0.7)  # ten blocks, tried twice
    assert times[0][0] < times[0][1] < times[1][1]


def test_what_cannot_be_tried_is_told_in_one_line(
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    del trainer
    stand_in = types.ModuleType(probe.__name__)
    vars(stand_in)["Probe"] = Mock(side_effect=torch.OutOfMemoryError("CUDA out\nof memory"))
    monkeypatch.setitem(sys.modules, probe.__name__, stand_in)
    words = ("plan", "device=cpu", "hydra.launcher.progress=off")
    assert command(monkeypatch, *words) == 1
    said = refusal(capsys, tmp_path)
    assert "a step could not be tried (CUDA out of memory); --gpu tells times" in said


MEASURED = """
import resource, runpy, sys, time
start = time.monotonic()
try:
    runpy.run_module("sae_sweeps", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sys.stderr.write(f"\\n{code} {time.monotonic() - start:.2f} {peak}")
"""
SWEEP = (
    *("method=topk,relu", "k=8,16", "training.tokens=81920", "tracking=off", "name=it"),
    "device=cpu",
)


@pytest.mark.slow
def test_a_sweep_takes_what_was_planned(tmp_path: Path) -> None:
    """Roughly: others use this machine, and what threads had of memory the process may keep."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}

    def ended(code: str, *words: str) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-c", code, *words]
        return subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True)

    plan = "import runpy; runpy.run_module('sae_sweeps', run_name='__main__', alter_sys=True)"
    told = ended(plan, "plan", "--json", *SWEEP)
    assert told.returncode == 0, told.stderr
    assert list(tmp_path.iterdir()) == []
    planned = json.loads(told.stdout)
    done = ended(MEASURED, *SWEEP)
    code, seconds, peak = done.stderr.splitlines()[-1].split()
    assert code == "0", done.stderr
    [pack] = planned["packs"]
    assert pack["memory_bytes"] == pytest.approx(int(peak), rel=0.4)
    assert 1 / 3 < planned["seconds"] / float(seconds) < 3
    results = [
        json.loads(path.read_text()) for path in tmp_path.glob("outputs/it/runs/*/result.json")
    ]
    assert len(results) == 4
    weights = sum(
        path.stat().st_size for path in tmp_path.glob("outputs/it/runs/*/*/*.safetensors")
    )
    assert planned["disk"]["weights"] == pytest.approx(weights, rel=0.02)
