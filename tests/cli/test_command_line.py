"""The command line from outside: verbs, flags, names, precedence, start-up time."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig

from sae_sweeps.record.run import Run
from tests.support.commands import Trainer, command, configs, python, run, trainer, write
from tests.support.places import ROOT

__all__ = ["run", "trainer"]  # fixtures

# --- Points --------------------------------------------------------------------------------


def test_a_single_run_is_a_sweep_of_one_point(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path
) -> None:
    assert run() == 0
    [only] = trainer.runs
    assert only.folder.parent.parent.parent == tmp_path / "outputs"
    assert only.label == "token_choice + aux_k"
    assert only.config.tree["k"] == 16.0 and only.config.tree["allocator"]["k"] == 16
    assert trainer.reports == [only.folder.parent.parent]


def test_the_config_is_composed_once_as_a_whole_and_once_for_each_point(
    run: Callable[..., int], trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra itself would begin with one more, a fifth of a short command's time."""
    composed: list[object] = []
    load = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, *given: Any, **options: Any) -> DictConfig:
        composed.append(given)
        return load(self, *given, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    assert run("k=4,8") == 0
    assert len(trainer.runs) == 2
    assert len(composed) == 3


@pytest.mark.slow
def test_a_named_sweep_goes_to_its_folder(run: Callable[..., int], trainer: Trainer) -> None:
    assert run("-m", "+sweep=pareto", "k=4,8") == 0
    assert len(trainer.runs) == 12
    assert {r.sweep for r in trainer.runs} == {"pareto"}
    assert {r.folder.parent.parent.name for r in trainer.runs} == {"pareto"}
    assert {r.label for r in trainer.runs} == {
        "relu",
        "gated",
        "jumprelu",
        "token_choice + aux_k",
        "mutual_choice + aux_k",
        "feature_choice + aux_k",
    }


@pytest.mark.parametrize(
    "words", [["seed=0,1", "-m"], ["-m", "seed=0,1"], ["seed=0,1"], ["k=8", "-m", "seed=0,1"]]
)
def test_flags_may_stand_anywhere(
    words: list[str], run: Callable[..., int], trainer: Trainer
) -> None:
    assert run(*words) == 0
    assert sorted(config["seed"] for config in configs(trainer)) == [0, 1]


PAIRED = """# @package _global_
name: paired
hydra:
  sweeper:
    params: {k: "4,8", optimizer.lr: 1e-2, seed: 7}
    points:
      - {optimizer.lr: 1e-3, method: topk}
      - {optimizer.lr: 2e-3, method: gated}
"""


@pytest.mark.slow
def test_the_command_line_beats_points_and_points_beat_params(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path
) -> None:
    write(tmp_path / "mine/sweep/paired.yaml", PAIRED)
    assert run("--config-dir", "mine", "+sweep=paired") == 0
    seen = {(r.choices["architecture"], r.config.tree["optimizer"]["lr"]) for r in trainer.runs}
    assert seen == {("relu", 1e-3), ("gated", 2e-3)}
    assert {config["seed"] for config in configs(trainer)} == {7}
    assert len(trainer.runs) == 4
    trainer.packs.clear()
    assert run("--config-dir", "mine", "+sweep=paired", "optimizer.lr=5e-3", "k=16") == 0
    assert {config["optimizer"]["lr"] for config in configs(trainer)} == {5e-3}
    assert {config["k"] for config in configs(trainer)} == {16.0}
    assert len(trainer.runs) == 2


def test_an_option_that_only_the_swept_methods_have(
    run: Callable[..., int], trainer: Trainer
) -> None:
    words = ("-m", "method=mutual_choice,feature_choice", "allocator.horizon_tokens=4096")
    assert run(*words) == 0
    assert [c["allocator"]["horizon_tokens"] for c in configs(trainer)] == [4096, 4096]
    assert all("allocator.horizon_tokens=4096" in r.overrides for r in trainer.runs)


# --- Names ---------------------------------------------------------------------------------


def sweep_name(trainer: Trainer) -> str:
    [name] = {run.sweep for run in trainer.runs}
    trainer.packs.clear()
    return name


def test_the_derived_name_is_the_same_for_a_repeated_and_an_extended_command(
    run: Callable[..., int], trainer: Trainer
) -> None:
    assert run("-m", "k=4,8") == 0
    tokens = float(trainer.runs[0].config.tree["training"]["tokens"])
    name = sweep_name(trainer)
    assert name.startswith("embedded-")
    assert run("-m", "k=4,8,32") == 0  # 4 and 8 are finished and lie in the same folder
    assert [config["k"] for config in configs(trainer)] == [32.0]
    assert sweep_name(trainer) == name
    assert run("name=null", "k=64") == 0
    assert sweep_name(trainer) == name
    assert run("-m", "k=2", f"training.tokens={tokens}", "device=cpu") == 0
    assert sweep_name(trainer) == name


@pytest.mark.parametrize(
    "other", ["optimizer.lr=1e-4", "allocator.k=7", "d_sae=512", "method=mutual_choice", "seed=3"]
)
def test_another_base_config_gets_another_name(
    other: str, run: Callable[..., int], trainer: Trainer
) -> None:
    assert run("k=4") == 0
    name = sweep_name(trainer)
    assert run("k=4", other) == 0
    assert sweep_name(trainer) != name


def test_a_run_is_named_for_people(run: Callable[..., int], trainer: Trainer) -> None:
    assert run("architecture=gated", "allocator=mutual_choice", "aux_loss=none", "seed=3") == 0
    [only] = trainer.runs
    assert only.label == "gated × mutual_choice"
    assert only.name.startswith("gated-x-mutual-choice-k16-s3-")


# --- Verbs, flags, completion --------------------------------------------------------------


def test_report_draws_every_folder(
    run: Callable[..., int], trainer: Trainer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("name=one") == run("name=two") == 0
    trainer.reports.clear()
    assert command(monkeypatch, "report", "outputs/one", "outputs/two") == 0
    folders = [tmp_path / "outputs/one", tmp_path / "outputs/two"]
    assert trainer.reports == folders
    assert trainer.pages == [(folders, tmp_path / "outputs/report.html")]
    assert command(monkeypatch, "report", "outputs/one", "--page", "one.html") == 0
    assert trainer.pages[1:] == [(folders[:1], Path("one.html"))]
    assert command(monkeypatch, "report", "outputs/one") == 0
    assert len(trainer.pages) == 2


def test_completion_offers_verbs_and_leaves_their_folders_to_the_shell(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    del trainer
    monkeypatch.setenv("COMP_LINE", "sae-sweeps report out")
    assert command(monkeypatch, "-sc", "query=bash") == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("COMP_LINE", "sae-sweeps rep")
    command(monkeypatch, "-sc", "query=bash")
    assert "report" in capsys.readouterr().out.split()
    monkeypatch.setenv("COMP_LINE", "sae-sweeps plan allocator=fea")
    assert command(monkeypatch, "-sc", "query=bash") == 0
    assert "allocator=feature_choice" in capsys.readouterr().out.split()


def test_ctrl_c_ends_with_130_and_one_line(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: list[Run]) -> None:
        raise KeyboardInterrupt

    trainer.before_ready = interrupt
    assert run() == 130
    assert capsys.readouterr().err.splitlines()[-1] == "sae-sweeps: interrupted"


TIMED = """
import sys, time
start = time.process_time()
import hydra.main
imported = time.process_time()
import runpy
try:
    runpy.run_module("sae_sweeps", run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
heavy = [name for name in ("torch", "transformers", "wandb", "numpy") if name in sys.modules]
times = (time.process_time() - imported) / (imported - start)
sys.stderr.write(f"\\n{code} {times:.2f} {heavy}")
"""


@pytest.mark.parametrize(
    ("words", "code", "most"),
    [(["--help"], 0, 10), (["report", "nowhere"], 1, 1), (["k=2000"], 1, 6)],
)
def test_what_does_not_train_is_quick_and_loads_no_torch(
    words: list[str], code: int, most: float, tmp_path: Path
) -> None:
    """Processor time is told in times what it takes to import Hydra, however busy the machine."""
    ended = python(TIMED, tmp_path, words)
    got, times, heavy = ended.stderr.splitlines()[-1].split(maxsplit=2)
    assert (int(got), heavy) == (code, "[]"), ended.stderr
    assert float(times) < most
    assert not list(tmp_path.iterdir())


def test_help_shows_groups_verbs_and_examples(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "sae_sweeps", "--help"]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    out = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True).stdout
    for text in (
        "sae-sweeps report DIR",
        "sae-sweeps plan [",
        "+sweep=pareto",
        "allocator: feature_choice",
        "d_sae:",
    ):
        assert text in out
