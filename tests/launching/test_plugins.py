"""Hydra plugins of other makers: their sweepers get figures, their launchers train our runs."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.support.launches import Launches, launches

__all__ = ["launches"]  # a fixture

SMALL = (
    *("tracking=off", "device=cpu", "d_sae=64", "k=4", "training.tokens=4096"),
    *("stream.batch_tokens=512", "stream.chunk_tokens=1024", "stream.calibration_tokens=1024"),
    *("evaluation.tokens=1024", "evaluation.ce_tokens=256"),
)
PLUGINS = os.environ.get("HYDRA_PLUGINS_PATH", "")
"""Where hydra-optuna-sweeper and its optuna lie: they are too much for every developer."""


def sae_sweeps(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [PLUGINS, os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-m", "sae_sweeps", *SMALL, *words],
        cwd=home,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )


def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]


@pytest.mark.xdist_group("launches")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["hydra.launcher.objective=fvuu"], "Did you mean 'fvu'?"),
        (["hydra.launcher.objective=[fvu,l1]"], "hydra.launcher.objective is 'l1', expected of"),
        (["hydra.launcher.objective=3"], "hydra.launcher.objective is 3, expected str"),
        (["hydra.launcher.workers=0"], "hydra.launcher.workers is 0, expected at least 1."),
        (["hydra.launcher.workers=two"], "hydra.launcher.workers is 'two', expected int or null."),
        (["+hydra.launcher.worker=2"], "launcher.worker is not an option of Options. Did you mean"),
    ],
)
def test_a_wrong_option_of_the_launcher_is_refused(
    words: list[str], expected: str, launches: Launches, tmp_path: Path
) -> None:
    done = launches.run(tmp_path, *SMALL, *words, cwd="empty")
    assert done.code == 1
    [line] = done.err.splitlines()
    assert expected in line
    assert not list((tmp_path / "empty").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(not PLUGINS, reason="HYDRA_PLUGINS_PATH names no hydra-optuna-sweeper")
def test_optuna_gets_the_figure_that_it_minimises(tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2")
    axis = ("optimizer.lr=interval(0.0005,0.005)", "name=it", "hydra.launcher.objective=fvu")
    done = sae_sweeps(tmp_path, *words, *axis)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "it"
    found: Any = OmegaConf.load(folder / "optimization_results.yaml")
    best = min(results(folder), key=lambda result: result["metrics"]["fvu"])
    assert found.best_value == best["metrics"]["fvu"]
    assert found.best_params["optimizer.lr"] == best["config"]["optimizer"]["lr"]
    assert len(results(folder)) == 4


@pytest.mark.slow
@pytest.mark.skipif(not PLUGINS, reason="HYDRA_PLUGINS_PATH names no hydra-optuna-sweeper")
def test_a_sweeper_that_needs_figures_is_not_kept_from_them(tmp_path: Path) -> None:
    words = ("-m", "hydra/sweeper=optuna", "optimizer.lr=interval(0.0005,0.005)")
    done = sae_sweeps(tmp_path, *words, "hydra/launcher=slurm")
    assert done.returncode == 1
    assert "hydra.launcher.wait is false: this sweeper needs the runs' results." in done.stderr
    done = sae_sweeps(tmp_path, *words, "hydra.sweeper.n_trials=1")
    assert done.returncode == 1
    assert "hydra.launcher.objective is null: this sweeper needs a figure" in done.stderr


@pytest.mark.slow
def test_the_stock_local_launcher_of_submitit_trains_each_point(tmp_path: Path) -> None:
    assert importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"), "see .[dev]"
    words = ("-m", "hydra/launcher=submitit_local", "name=it", "seed=0,1")
    done = sae_sweeps(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "it"
    assert sorted(result["seed"] for result in results(folder)) == [0, 1]
    assert (folder / "pareto.png").exists()
