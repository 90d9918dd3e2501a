"""Sweeps logged offline as packs do it, a server to upload them to, and the verb `sync`."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import wandb

from sae_sweeps.cli import commands
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Summary
from sae_sweeps.tracking.wandb.tracker import Wandb
from tests.support.fabricate import config, finish
from tests.support.fabricate import sweep as fabricated
from tests.support.wandb_attempt import row as attempt_row
from tests.support.wandb_backend import Backend, ServedRun

Mode = Literal["offline", "online"]
KEY = "k" * 40
DEAD = "http://127.0.0.1:9"
WHERE: dict[str, Any] = {"project": "saes", "entity": "lab", "tags": []}
TRACKING = {"_target_": "sae_sweeps.tracking.wandb.Wandb", "mode": "auto", **WHERE}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give W&B a home of its own, no server and no mode."""
    before = set(os.environ)
    monkeypatch.delenv("WANDB_MODE")
    folder = tmp_path / "home"
    folder.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", DEAD)
    yield
    wandb.teardown()
    for name in [name for name in os.environ if name.startswith("WANDB") and name not in before]:
        del os.environ[name]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    with Backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield backend


class Sweep:
    """A sweep's folder, whose runs are logged offline as members of a pack do."""

    def __init__(self, folder: Path, runs: int = 1) -> None:
        self.folder = fabricated(folder, [None] * runs)
        manifest = json.loads((self.folder / "sweep.json").read_text())
        for point in manifest["points"]:
            point["config"]["tracking"] = TRACKING
        (self.folder / "sweep.json").write_text(json.dumps(manifest))

    def run(self, number: int) -> Run:
        choices = {"architecture": "relu", "allocator": "token_choice"}
        folder = self.folder / f"runs/s{number}"
        return Run(folder.name, self.folder.name, folder, config(number), choices, [])

    def train(
        self, *rows: int, checkpoint: int = 0, failed: bool = False, mode: Mode = "offline"
    ) -> None:
        """Log so many rows of each run after the checkpoint's, and finish."""
        tracking = Wandb(project="saes", entity="lab", mode=mode, tags=[])
        for number, count in enumerate(rows):
            run = self.run(number)
            run.folder.mkdir(parents=True, exist_ok=True)
            path = run.folder / "metrics.jsonl"
            lines = path.read_text().splitlines(True)[:checkpoint] if path.exists() else []
            path.write_text("".join(lines))
            tracked = tracking.open(run)
            for index in range(checkpoint + 1, count + 1):
                line = attempt_row(index, 5)
                with path.open("a") as file:
                    file.write(f"{line.line}\n")
                tracked.log(line)
            if failed:
                tracked.preempt()
            else:
                finish(self.folder, number)
                tracked.finish(run.files.result())
        tracking.close()
        forget()

    def summarise(self) -> None:
        from PIL import Image

        Image.new("RGB", (8, 4)).save(self.folder / "pareto.png")
        table = [{"run": "s0", "l0": 7.5}, {"run": "s1", "l0": 8.5}]
        lines = {"fvu": {"relu": ([7.5, 8.5], [0.25, 0.125])}}
        picture = self.folder / "pareto.png"
        summary = Summary(self.folder.name, self.folder, table, "", lines, picture)
        tracking = Wandb(project="saes", entity="lab", mode="offline", tags=[])
        tracking.summarise(summary)
        tracking.close()
        forget()

    def logs(self, name: str = "") -> list[Path]:
        return sorted((self.folder / "wandb").glob(f"*run-2*-{name}*/*.wandb"))

    def id(self, number: int = 0) -> str:
        return (self.run(number).folder / "wandb_id.txt").read_text().strip()

    def rows(self, number: int = 0) -> list[dict[str, Any]]:
        """What W&B must have, from the run's own file."""
        lines = (self.run(number).folder / "metrics.jsonl").read_text().splitlines()
        return [{"tokens_seen": row.pop("tokens"), **row} for row in map(json.loads, lines)]


def forget() -> None:
    """End W&B's process, so that the next one takes the folders of its own sweep."""
    wandb.teardown()
    for name in ("DATA", "CACHE", "ARTIFACT"):
        os.environ.pop(f"WANDB_{name}_DIR", None)


def served(run: ServedRun) -> list[dict[str, Any]]:
    """The rows that the server has, less what W&B adds itself; its steps count them."""
    assert [row["_step"] for row in run.rows()] == list(range(len(run.rows())))
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in run.rows()]


def state(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its size and time."""
    paths = [path for path in folder.rglob("*") if not path.is_symlink()]
    stats = {str(path): path.stat() for path in paths}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


@pytest.fixture
def uploaded(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, list[str]]]:
    """Run the verb; gives its code, its last line and what it complained of."""

    def upload(*folders: Path) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = commands.main(["sync", *map(str, folders)])
        wandb.teardown()
        said = capsys.readouterr()
        return code, said.out.strip(), said.err.splitlines()

    return upload


Uploaded = Callable[..., tuple[int, str, list[str]]]
