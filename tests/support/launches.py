"""Launches `sae-sweeps` in processes that a test may disturb, and reads what they leave.

Each is a fork of one process that has loaded everything, so that it trains after 0.7 s.
"""

import atexit
import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import load_file

from tests.support.fork_server import Command, ForkServer, environment
from tests.support.places import ROOT

SMALL = (
    *("k=4", "d_sae=64", "device=cpu", "tracking=off", "stream.batch_tokens=512"),
    *("stream.chunk_tokens=1024", "stream.calibration_tokens=1024", "evaluation.tokens=1024"),
    *("evaluation.ce_tokens=256", "hydra.launcher.progress=off"),
)
"""Options of small runs."""
SYNTHETIC = "target_model=synthetic"
"""To the stream one target model is as another, and this one takes no 3 s to import.

With it a small run takes 0.05 s for every 10,000 tokens; the embedded model's takes 0.25 s.
"""


def until(what: Callable[[], Any], why: str, seconds: float = 120) -> Any:
    """Wait for a true value, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"no {why} after {seconds:g} s"
        time.sleep(0.01)
    return found


class Launch:
    """A process of its own session."""

    def __init__(self, server: ForkServer, pid: int, out: Path, err: Path) -> None:
        self.server, self.pid, self._out, self._err = server, pid, out, err
        self.code: int | None = None

    def send(self, signum: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, signum)

    def send_all(self, signum: int) -> None:
        """Send a signal as a terminal does: to the process and its workers."""
        os.killpg(self.pid, signum)

    def ended(self) -> bool:
        """Say whether it has ended."""
        if self.code is None:
            self.code = self.server.ended(self.pid)
        return self.code is not None

    def wait(self, seconds: float = 150) -> int:
        """Wait for the exit code; less the signal's number if one ended it."""
        try:
            until(self.ended, "end", seconds)
        except AssertionError:
            self.send_all(signal.SIGKILL)
            raise AssertionError(f"no end after {seconds:g} s: {self.out}{self.err}") from None
        assert self.code is not None
        return self.code

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return self._out.read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self._err.read_text(encoding="utf-8", errors="replace")


class Launches:
    """Commands on the process that forks."""

    def __init__(self, checkout: Path = ROOT) -> None:
        self.server, self.counter = ForkServer(checkout), count(1)
        self.started: list[Launch] = []

    def start(
        self,
        home: Path,
        *words: str,
        cwd: str = ".",
        env: Mapping[str, str] | None = None,
        **how: Any,
    ) -> Launch:
        """Start `sae-sweeps WORDS` in `home`, or a folder there; `how` has more of a `Command`."""
        (home / cwd).mkdir(parents=True, exist_ok=True)
        number = next(self.counter)
        out, err = (str(home / f"{name}-{number}") for name in ("out", "err"))
        own = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", "PYTHONPATH": self.server.modules}
        given = dict(env or environment() | own)
        command = Command(words, str(home / cwd), out, err, given, **how)
        launch = Launch(self.server, self.server.start(command), Path(out), Path(err))
        self.started.append(launch)
        return launch

    def close(self) -> None:
        """End the server, and what a test that failed left running."""
        for launch in self.started:
            if not launch.ended():
                launch.send_all(signal.SIGKILL)
        self.server.close()

    def run(self, home: Path, *words: str, **also: Any) -> Launch:
        """Run `sae-sweeps WORDS` in `home` to its end."""
        launch = self.start(home, *words, **also)
        launch.wait()
        return launch


@cache
def the_launches() -> Launches:
    """All of this test process's: loading takes as long as twenty commands."""
    launches = Launches()
    atexit.register(launches.close)
    return launches


@pytest.fixture(scope="session")
def launches() -> Launches:
    """What starts commands in processes that a test may disturb."""
    return the_launches()


# --- What launches leave -------------------------------------------------------------------


class Left(NamedTuple):
    """What a run left, less what depends on the time."""

    weights: dict[str, list[Any]]
    rows: list[dict[str, float]]
    result: dict[str, Any]


def left(sweep: Path) -> dict[str, Left]:
    """What each run of a sweep left, by its name."""
    return {run.name: left_by_run(run) for run in sorted((sweep / "runs").iterdir())}


def left_by_run(run: Path) -> Left:
    """Weights, rows and result."""
    weights = load_file(run / "checkpoint" / "weights.safetensors")
    result = json.loads((run / "result.json").read_text())
    del result["cost"], result["config"]
    found = [
        {name: value for name, value in row.items() if not name.startswith("perf/")}
        for row in rows(run)
    ]
    return Left({name: tensor.tolist() for name, tensor in weights.items()}, found, result)


def rows(run: Path) -> list[dict[str, float]]:
    """The whole rows of a run's metrics."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def trained(sweep: Path) -> int:
    """Tokens that the furthest run of a sweep has in its metrics."""
    found = [row["tokens"] for run in (sweep / "runs").glob("*") for row in rows(run)]
    return int(max(found, default=0))


def logs(sweep: Path) -> str:
    """The logs of all runs."""
    return "".join(path.read_text() for path in sorted((sweep / "runs").glob("*/run.log")))


def checkpoints(sweep: Path) -> list[int]:
    """The tokens of all checkpoints."""
    paths = (sweep / "runs").glob("*/checkpoint/step-*.safetensors")
    return sorted(int(path.stem.removeprefix("step-")) for path in paths)
