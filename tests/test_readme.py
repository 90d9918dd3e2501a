"""The README: every command in it runs, every path it names exists, its variant works."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sae_sweeps.cli.commands import PLAN
from sae_sweeps.cli.commands import VERBS as VERBS_THERE_ARE
from sae_sweeps.embedded import MODEL
from tests.support.launches import Launch, the_launches
from tests.support.places import ROOT
from tests.support.wandb_backend import Backend
from tests.support.wandb_place import MAIN

README = (ROOT / "README.md").read_text()
TINY = [
    "+tiny=yes",
    "tracking=off",
    "hydra.launcher.progress=off",
]
TINY_CONF = """
# @package _global_
d_sae: 64
stream: {batch_tokens: 1024, chunk_tokens: 2048, calibration_tokens: 1024}
training: {tokens: 4096}
evaluation: {tokens: 1024, ce_tokens: 256}
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    """The lines of the README's shell blocks, comments cut off."""
    lines = "".join(blocks("sh")).splitlines()
    return [line.partition(" #")[0].strip() for line in lines if line.strip()]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with what the README's commands expect, and options that make them small."""
    (tmp_path / "my_conf" / "tiny").mkdir(parents=True)
    (tmp_path / "my_conf" / "tiny" / "yes.yaml").write_text(TINY_CONF)
    (tmp_path / "my_conf" / "allocator").mkdir()
    (tmp_path / "my_conf" / "allocator" / "first.yaml").write_text(blocks("yaml")[0])
    (tmp_path / "first.py").write_text(blocks("python")[0])
    (tmp_path / "my_text").mkdir()
    for source in sorted((ROOT / "tests").rglob("*.py")):
        (tmp_path / "my_text" / f"{source.stem}.txt").write_text(source.read_text())
    shutil.copytree(MODEL, tmp_path / "my_model")
    rng = np.random.default_rng(0)
    np.save(tmp_path / "activations.npy", rng.normal(size=(20_000, 16)).astype(np.float32))
    return tmp_path


def run(place: Path, words: list[str]) -> Launch:
    env = os.environ | {"SAE_SWEEPS_CACHE": str(place / "cache"), "OMP_NUM_THREADS": "1"}
    return the_launches().run(place, *words, env=env, main=MAIN)


def small(words: list[str]) -> list[str]:
    """The same command on small options; of long axes the first two values are kept."""
    words = [re.sub(r"=(\w+),(\w+),.*", r"=\1,\2", word) for word in words]
    given = {word.partition("=")[0] for word in words}
    if "+sweep=pareto" in words:
        words += [cut for cut in ("method=topk,relu", "k=4,8") if cut.split("=")[0] not in given]
    if "fine_tune" in given:
        words += ["stream.batch_tokens=256"]  # the phase is a share of few tokens
    flags = [] if "--config-dir" in words else ["--config-dir", "my_conf"]
    wanted = [word for word in TINY if word.partition("=")[0] not in given]
    return [*flags, *words, *wanted]


OURS = [line for line in commands() if line.startswith("sae-sweeps")]
VERBS = [line for line in OURS if set(line.split()[1:2]) & set(VERBS_THERE_ARE)]
PLANS = [line for line in OURS if line.split()[1:2] == [PLAN]]
TRAINING = [line for line in OURS if line not in (*VERBS, *PLANS) and "slurm" not in line]
"""Of SLURM's, tests/slurm/test_readme.py runs the lines."""


def test_commands_were_found() -> None:
    assert len(commands()) >= 11
    assert len(TRAINING) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("line", [line for line in TRAINING if "gpt2" not in line])
def test_training_command(line: str, place: Path) -> None:
    words = shlex.split(line)[1:]
    if words == ["--help"]:
        done = run(place, words)
        assert done.code == 0 and "feature_choice" in done.out
        return
    done = run(place, small(words))
    assert done.code == 0, done.err
    results = list(place.glob("outputs/*/runs/*/result.json"))
    assert results
    assert len(list(place.glob("outputs/*/pareto.csv"))) == 1


def test_model_by_name_without_network_is_refused_in_one_line(place: Path) -> None:
    [line] = [line for line in TRAINING if "gpt2" in line]
    command = [sys.executable, "-m", "sae_sweeps", *small(shlex.split(line)[1:])]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "target_model.model is 'openai-community/gpt2'" in done.stderr
    assert not (place / "outputs").exists()


@pytest.mark.slow
def test_plans(place: Path) -> None:
    assert PLANS
    for line in PLANS:
        done = run(place, shlex.split(line)[1:])
        assert done.code == 0, done.err
        assert "12 runs to train" in done.out and "Time: about" in done.out
    assert not (place / "outputs").exists()


@pytest.mark.slow
def test_verbs_of_a_sweep_here(place: Path) -> None:
    lines = [line for line in VERBS if line.endswith("outputs/pareto")]
    assert {line.split()[1] for line in lines} == {"status", "retry", "report"}
    for more in ([], ["name=wide"]):
        run(place, small(["+sweep=pareto", *more]))
    picture, page = place / "outputs/pareto/pareto.png", place / "outputs/report.html"
    picture.unlink()
    for line in lines:
        done = run(place, shlex.split(line)[1:])
        assert done.code == 0, done.err
    assert picture.stat().st_size > 10_000 and page.stat().st_size > 1_000_000


@pytest.mark.slow
def test_verbs_of_wandb(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line for line in VERBS if line.split()[1] in ("sync", "dashboard")]
    assert [line.split()[2:] for line in lines] == [["outputs/fanned"]] * 2
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(place))
    with Backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        words = [word for word in small(["+sweep=pareto"]) if word != "tracking=off"]
        assert run(place, [*words, "name=fanned", "tracking.mode=offline"]).code == 0
        assert backend.runs == {}
        for line in lines:
            done = run(place, shlex.split(line)[1:])
            assert done.code == 0, done.err
        assert len(backend.runs) == 5  # two methods, two k, and the summary
        assert backend.views


def test_set_up_commands_are_those_of_ci() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    set_up = [line for line in commands() if line.startswith("pip")]
    assert len(set_up) == 2
    for line in set_up:
        for part in line.split(" && "):
            assert part.replace("pip install", "pip install -q") in ci or part in ci, part


def test_paths_exist() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for path in re.findall(r"\]\(([\w/.]+)\)", page.read_text()):
            assert (page.parent / path).exists(), path
    tree = README[README.index("sae_sweeps/\n  interfaces.py") :].split("```")[0]
    for line in tree.splitlines():
        for name in re.findall(r"^  ((?:[\w.]+/? )+)", f"{line} "):
            for part in name.split():
                assert (ROOT / "sae_sweeps" / part).exists(), part


def test_option_table_is_complete() -> None:
    unsaid = {"method/none", "data/none", "hydra/sweeper/points"}
    files = [path.relative_to(ROOT / "conf") for path in (ROOT / "conf").glob("*/**/*.yaml")]
    assert len(files) > 40
    for file in files:
        group, option = file.parent.as_posix(), file.stem
        if f"{group}/{option}" not in unsaid:
            row = next(line for line in README.splitlines() if f"| `{group}` |" in line)
            assert f"`{option}`" in row, file
