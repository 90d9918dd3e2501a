"""The wheel: what is in it, and that it trains where no checkout is."""

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.places import ROOT

MAX_BYTES = 8_000_000
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def run(line: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command elsewhere, with nothing in the environment that leads to the checkout."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    env |= {"OMP_NUM_THREADS": "1"}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Installed:
    """A virtual environment that holds the wheel, and the other packages of this one."""

    venv: Path
    home: Path
    """An empty folder to work in."""

    def python(self, code: str) -> str:
        done = run([str(self.venv / "bin" / "python"), "-c", code], self.home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the console script."""
        return run([str(self.venv / "bin" / "sae-sweeps"), *words], self.home)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    built = run(line, folder)
    assert built.returncode == 0, built.stderr
    [path] = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install without dependencies; a .pth file lends them.

    A folder that a .pth file names is searched after the environment's own, and .pth files in it,
    such as an editable install's, are not read.
    """
    home = tmp_path_factory.mktemp("installed")
    venv = home / "venv"
    made = run([sys.executable, "-m", "venv", "--without-pip", str(venv)], home)
    assert made.returncode == 0, made.stderr
    python = str(venv / "bin" / "python")
    line = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps"]
    done = run([*line, str(wheel)], home)
    assert done.returncode == 0, done.stderr
    [packages] = venv.glob("lib/python*/site-packages")
    lent = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "lent.pth").write_text("\n".join(lent) + "\n")
    (home / "work").mkdir()
    return Installed(venv, home / "work")


# --- Content -------------------------------------------------------------------------------


def files(folder: str) -> list[Path]:
    """The checkout's files below a folder, less what Python leaves there."""
    found = (ROOT / folder).rglob("*")
    return sorted(p for p in found if p.is_file() and "__pycache__" not in p.parts)


def test_the_wheel_holds_package_plugins_and_configs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for folder in ("sae_sweeps", "hydra_plugins", "conf"):
            paths = files(folder)
            assert paths
            for path in paths:
                name = path.relative_to(ROOT).as_posix()
                name = f"sae_sweeps/{name}" if folder == "conf" else name
                assert archive.read(name) == path.read_bytes(), name
        expected = {"sae_sweeps", "hydra_plugins"}
        info = {name.split("/")[0] for name in names} - expected
        assert len(info) == 1 and info.pop().endswith(".dist-info")
        assert sum(entry.file_size for entry in archive.infolist()) < 2 * MAX_BYTES
    assert wheel.stat().st_size < MAX_BYTES


def test_the_wheel_holds_model_tokens_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    inside = "sae_sweeps/embedded"
    wanted = ["model/model.safetensors", "model/config.json", "model/tokenizer.json"]
    wanted += ["tokens/train.u16.xz", "tokens/held_out.u16.xz", "LICENSE-CPython.txt"]
    assert {f"{inside}/{name}" for name in wanted} <= set(names)
    assert [n for n in names if n.endswith(".dist-info/licenses/LICENSE")]
    assert [n for n in names if n.endswith(".dist-info/entry_points.txt")]


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    for name in names:
        parts = Path(name).parts
        assert parts[0] != "conf" and not name.endswith(".pyc"), name
        assert not {"tests", "outputs", ".ci", "__pycache__"} & set(parts), name
        assert parts[0] != "wandb", name


# --- Use -----------------------------------------------------------------------------------


def test_what_is_imported_is_the_wheels(installed: Installed) -> None:
    code = """
import hydra_plugins.sae_sweeps, sae_sweeps
from sae_sweeps import embedded
from sae_sweeps.cli import app
from sae_sweeps.config import rules
for path in (sae_sweeps.__file__, hydra_plugins.sae_sweeps.__file__, app.CONF, embedded.MODEL):
    print(path)
"""
    paths = installed.python(code).split()
    assert len(paths) == 4
    for path in paths:
        assert Path(path).is_relative_to(installed.venv) and Path(path).exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cfg", "job"], ["name: null", "_target_: sae_sweeps.allocator.token_choice"]),
        (["--cfg", "job", "+sweep=pareto"], ["name: pareto"]),
        (["--cfg", "job", "method=gated"], ["_target_: sae_sweeps.architecture.gated"]),
        (["--cfg", "hydra", "+sweep=pareto"], ["method: relu,gated,jumprelu", "LocalLauncher"]),
        (["--help"], ["feature_choice", "mutual_choice", "pareto", "smoke", "target_model"]),
    ],
)
def test_it_composes(installed: Installed, words: list[str], expected: list[str]) -> None:
    done = installed.command(*words)
    assert done.returncode == 0, done.stderr
    for text in expected:
        assert text in done.stdout
    assert not list(installed.home.iterdir())


def test_it_refuses_in_one_line(installed: Installed) -> None:
    done = installed.command("+sweep=pareto", "k=4,1025")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("sae-sweeps: ") and "d_sae" in line
    assert not list(installed.home.iterdir())


def test_it_trains(installed: Installed) -> None:
    done = installed.command("-m", "+sweep=smoke", "tracking=off")
    assert done.returncode == 0, done.stderr
    made = installed.home / "outputs" / "smoke"
    results = [json.loads(p.read_text()) for p in sorted(made.glob("runs/*/result.json"))]
    labels = [result["label"] for result in results]
    assert sorted(labels) == ["mutual_choice + aux_k"] * 2 + ["token_choice + aux_k"] * 2
    for result in results:
        assert 0 < result["metrics"]["fvu"] < 0.7
        assert result["metrics"]["ce"] > result["metrics"]["ce_clean"]
    assert (made / "pareto.png").stat().st_size > 1000
    again = installed.command("report", "outputs/smoke")
    assert again.returncode == 0, again.stderr
    assert (made / "report.html").stat().st_size > 1_000_000  # with Plotly and our own scripts
