"""What users bring along, on a real cluster: the stock launcher, sweepers, modules of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.support.slow_model import SLOW_TARGET

from .conftest import Slurm, until
from .sweeps import (
    JOB,
    QUICK,
    WORDS,
    jobs,
    left_behind,
    processes,
    sae_sweeps,
    sae_sweeps_itself,
    status,
    submit,
    wait_for_end,
    wait_for_tokens,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

PLUGINS = os.environ.get("HYDRA_PLUGINS_PATH", "")
SHORT = (QUICK, "training.tokens=16384")
STOCK = ("hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=2")

MODULE = '''
from sae_sweeps.aux_loss.none import NoAux


class Mine(NoAux):
    """No loss, from a module beside the command."""

    def __init__(self, d_in: int, d_sae: int, *, word: str) -> None:
        super().__init__(d_in, d_sae)
        self.word = word
'''


def test_modules_and_options_from_outside_reach_the_jobs(slurm: Slurm, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "beside.py").write_text(MODULE)
    option = tmp_path / "mine" / "aux_loss" / "mine.yaml"
    option.parent.mkdir()
    option.write_text("_target_: beside.Mine\nword: first\n")
    words = (*SHORT, "--config-dir", "mine", "aux_loss=mine")
    folder = submit(slurm, tmp_path, *words, "hydra.launcher.setup=['export WORD=1','sleep 2']")
    option.write_text("_target_: beside.Mine\nword: edited\n")  # before the job has started
    found = wait_for_end(slurm, folder)
    assert found["counts"]["done"] == 2, found
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    assert {result["config"]["aux_loss"]["word"] for result in results} == {"first"}
    [job] = jobs(folder)
    until(lambda: "COMPLETED" in slurm.run("sacct", "-o", "State", "-j", job), "the job's end")
    # From elsewhere, where the module is not beside the command.
    (next(folder.glob("runs/*")) / "result.json").unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for place, expected in (
        (elsewhere, "aux_loss._target_ is 'beside.Mine', and there is no module 'beside'"),
        (tmp_path, "hydra.launcher.setup is ['export WORD=1', 'sleep 2'], which jobs would run"),
    ):
        done = sae_sweeps(slurm, place, "retry", str(folder))
        assert done.returncode == 1 and expected in done.stderr, done.stderr
    done = sae_sweeps(slurm, elsewhere, "retry", str(folder), "--trust")
    assert done.returncode == 0, done.stderr
    assert wait_for_end(slurm, folder)["counts"]["done"] == 2


@pytest.mark.skipif(not PLUGINS, reason="HYDRA_PLUGINS_PATH names no hydra-optuna-sweeper")
def test_optuna_gets_figures_of_runs_on_the_cluster(
    slurm: Slurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", PLUGINS)
    sweeper = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=3")
    aims = ("hydra.sweeper.direction=[minimize,minimize]", "hydra.launcher.objective=[l0,fvu]")
    words = [*WORDS[2:], "optimizer.lr=interval(0.0005,0.005)", *SHORT, "name=it", *JOB]
    done = sae_sweeps_itself(slurm, tmp_path, *sweeper, *aims, *words, "hydra.launcher.wait=true")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "outputs" / "it"
    results = [json.loads(path.read_text()) for path in folder.glob("runs/*/result.json")]
    told = {(r["metrics"]["l0"], r["metrics"]["fvu"]) for r in results}
    rates = {r["config"]["optimizer"]["lr"] for r in results}
    found: Any = OmegaConf.load(folder / "optimization_results.yaml")
    assert len(results) == 3 and jobs(folder)
    assert found.solutions
    for solution in found.solutions:
        assert tuple(solution["values"]) in told and solution.params["optimizer.lr"] in rates


def test_the_stock_launcher_keeps_working(slurm: Slurm, tmp_path: Path) -> None:
    done = sae_sweeps_itself(slurm, tmp_path, "-m", *WORDS, *SHORT, "name=it", *STOCK)
    assert done.returncode == 0, done.stdout + done.stderr
    here = sae_sweeps(slurm, tmp_path, *WORDS, *SHORT, "name=here")
    assert here.returncode == 0, here.stderr
    outputs = tmp_path / "outputs"
    assert left_behind(outputs / "it") == left_behind(outputs / "here")


def test_a_job_of_the_stock_launcher_goes_on_after_a_warning(slurm: Slurm, tmp_path: Path) -> None:
    """The sweep waits in another process; here its only job is warned, saves and is requeued."""
    words = [*WORDS, *SLOW_TARGET, "method=topk", "training.tokens=65536", "name=it", *STOCK]
    words.remove("method=topk,mutual_choice")
    words.append("training.log_every_tokens=2048")
    command = [sys.executable, "-m", "sae_sweeps", "-m", *words]
    waiting = subprocess.Popen(command, cwd=tmp_path, env={**slurm.env, "OMP_NUM_THREADS": "1"})
    folder = tmp_path / "outputs" / "it"
    try:
        wait_for_tokens(slurm, folder, 10_000)
        job = slurm.run("squeue", "-h", "-o", "%A")
        slurm.run("scancel", "--signal=USR2", job)
        assert waiting.wait(120) == 0
    finally:
        waiting.kill()
    log = next(folder.glob("runs/*/run.log")).read_text()
    assert " left at " in log and " resumed at " in log
    assert len(list(folder.glob("runs/*/result.json"))) == 1


def test_a_second_launch_leaves_to_the_first_what_is_its_own(slurm: Slurm, tmp_path: Path) -> None:
    """Submitted twice with an axis more: the second has the new runs only, and may cancel all."""
    folder = submit(slurm, tmp_path, *SLOW_TARGET, "training.tokens=1000000")
    until(lambda: len(processes(folder)) == 1, "the first job's start", 60)
    words = (*WORDS, *SLOW_TARGET, "training.tokens=1000000", "name=it")
    again = sae_sweeps(slurm, tmp_path, *words, *JOB, "seed=0,1")
    assert "2 runs to train, 2 under way in job" in again.stdout
    [second] = jobs(folder)
    forced = sae_sweeps(slurm, tmp_path, *words, *JOB, "force=true")
    assert forced.returncode == 1 and "is under way in job" in forced.stderr
    here = sae_sweeps(slurm, tmp_path, *words)
    assert here.returncode == 0 and "0 runs to train, 2 under way" in here.stdout
    ended = json.loads(sae_sweeps(slurm, tmp_path, "cancel", str(folder), "--json").stdout)
    assert len(ended[0]["jobs"]) == 2 and second in ended[0]["jobs"]
    found = wait_for_end(slurm, folder)
    assert found["counts"]["lost"] == 4
    assert status(slurm, folder)["over"]


def test_memory_that_runs_out_is_said(slurm: Slurm, tmp_path: Path) -> None:
    folder = submit(slurm, tmp_path, "training.tokens=16384", "hydra.launcher.memory=300M")
    [reason] = {run["reason"] for run in wait_for_end(slurm, folder)["runs"]}
    assert "ended as" in reason and "emory limit" in reason
