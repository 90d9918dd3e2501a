"""Commands run in this process, with a stand-in for training, and in others."""

import importlib
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps import __main__
from sae_sweeps.record.result import METRICS_VERSION, Result
from sae_sweeps.record.run import Run
from sae_sweeps.system import hugging_face
from tests.support.places import ROOT


def _read(runs: list[Run]) -> list[Any]:
    return [run.files.result() for run in runs]


class Trainer:
    """Stands in for training: writes what training would, and remembers the packs."""

    def __init__(self) -> None:
        self.packs: list[list[Run]] = []
        self.measured: list[list[Run]] = []
        self.reports: list[Path] = []
        self.pages: list[tuple[list[Path], Path]] = []
        self.before_ready: Callable[[list[Run]], None] = lambda _: None
        self.error_of: Callable[[Run], Exception | None] = lambda _: None
        self.measure: Callable[[list[Run]], list[Any]] = _read

    def load(self, train: list[Run], measure: list[Run], display: Any) -> "Loaded":
        """Load nothing."""
        self.before_ready([*train, *measure])
        return Loaded(self, train, measure, display)

    def train(self, runs: list[Run], display: Any) -> list[Any]:
        """Train nothing."""
        self.packs.append(runs)
        display.started(sum(r.config.training.tokens for r in runs), [r.title for r in runs])
        return [self._outcome(run, index, display) for index, run in enumerate(runs)]

    def _outcome(self, run: Run, index: int, display: Any) -> Any:
        assert (run.folder / "config.yaml").is_file() and (run.folder / "overrides.yaml").is_file()
        error = self.error_of(run)
        if error:
            display.finished(index, "failed")
            return error
        display.advance(index, run.config.training.tokens)
        display.metrics(index, {"l0": 16.0, "fvu": 0.1})
        display.finished(index, "finished")
        result = Result(
            run=run.name,
            label=run.label,
            choices=run.choices,
            config=run.config,
            tokens=run.config.total_tokens,
            metrics={"l0": 1.0},
            evaluation={"metrics_version": METRICS_VERSION},
        )
        run.files.finish(result)
        return result

    def report_side_by_side(self, folders: list[Path], path: Path) -> None:
        """Draw nothing."""
        self.pages.append((folders, path))

    def report(self, folder: Path, tracking: Any = None) -> None:
        """Draw nothing."""
        del tracking
        self.reports.append(folder)

    @property
    def runs(self) -> list[Run]:
        """Every run that was trained, in order."""
        return [run for pack in self.packs for run in pack]


@dataclass
class Loaded:
    """Stands in for a loaded pack."""

    trainer: Trainer
    runs: list[Run]
    finished: list[Run]
    display: Any
    faults: list[Exception] = field(default_factory=list[Exception])

    def train(self, tracking: Any) -> list[Any]:
        """Train nothing."""
        return self.trainer.train(self.runs, self.display)

    def measure(self, tracking: Any) -> list[Any]:
        """Measure nothing."""
        self.trainer.measured.append(self.finished)
        return self.trainer.measure(self.finished)


def _module(name: str, **content: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    vars(module).update(content)
    return module


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trainer]:
    """Replace training and report, and work in an empty folder."""
    fake = Trainer()
    training = _module("sae_sweeps.training.pack", load=fake.load)
    reports = {"report": fake.report, "report_side_by_side": fake.report_side_by_side}
    report = _module("sae_sweeps.pareto.report", **reports)
    monkeypatch.setitem(sys.modules, training.__name__, training)
    monkeypatch.setitem(sys.modules, "sae_sweeps.pareto", _module("sae_sweeps.pareto"))
    monkeypatch.setitem(sys.modules, report.__name__, report)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no-cache"))
    for name in ("HF_HUB_CACHE", "COMP_LINE"):
        monkeypatch.delenv(name, raising=False)
    hugging_face._answers.cache_clear()  # pyright: ignore[reportPrivateUsage, reportFunctionMemberAccess]
    importlib.invalidate_caches()
    yield fake


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Run `sae-sweeps WORDS` in this process; returns the exit code."""
    monkeypatch.setattr(sys, "argv", ["sae-sweeps", *words])
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    return 0 if ended.value.code is None else int(ended.value.code)


@pytest.fixture
def run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Give a function that runs a command, tracking off."""
    del trainer
    return lambda *words: command(monkeypatch, *words, "tracking=off")


def configs(trainer: Trainer) -> list[dict[str, Any]]:
    """Collect what was trained."""
    return [run.config.tree for run in trainer.runs]


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def python(code: str, cwd: Path, words: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run code in a fresh interpreter that finds the checkout."""
    path = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(cwd)}
    line = [sys.executable, "-c", code, *words]
    return subprocess.run(line, cwd=cwd, env=path, capture_output=True, text=True, timeout=60)


def refusal(capsys: pytest.CaptureFixture[str], where: Path) -> str:
    """Return the only line that was said, having seen that nothing was written."""
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("sae-sweeps: "), said.err
    assert len(lines[0]) < 420
    assert "Traceback" not in said.err and said.out == ""
    assert not (where / "outputs").exists()
    return lines[0]
