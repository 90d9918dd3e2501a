"""Launches `sae-sweeps` in processes that a test may disturb, and reads what they leave.

Each is a fork of one process that has loaded everything, so that it trains after 0.5 s.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fork_server import load
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parent.parent

SMALL = (
    *("k=4", "d_sae=64", "device=cpu", "tracking=off", "stream.batch_tokens=256"),
    *("stream.chunk_tokens=1024", "stream.calibration_tokens=1024", "evaluation.tokens=1024"),
    *("evaluation.ce_tokens=256", "hydra.launcher.progress=off"),
)
"""Options of runs that take a tenth of a second for every 10,000 tokens."""


def until(what: Callable[[], Any], why: str, seconds: float = 60) -> Any:
    """Wait for a true value, and give it."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, f"no {why} after {seconds:g} s"
        time.sleep(0.01)
    return found


class Launch:
    """A process of its own session."""

    def __init__(self, server: "Launches", pid: int, home: Path, number: int) -> None:
        self.server, self.pid, self.home = server, pid, home
        self._out, self._err = (home / f"{name}-{number}" for name in ("out", "err"))
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
            self.code = self.server.ask({"wait": self.pid})
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
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self._err.read_text()


class Launches:
    """The process that forks, seen from a test."""

    def __init__(self) -> None:
        names = [name for name in os.environ if not name.startswith(("WANDB", "SLURM"))]
        environment = {name: os.environ[name] for name in names}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.count = 0

    def ask(self, question: Mapping[str, Any]) -> Any:
        """Give the process something to do."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        home: Path,
        *words: str,
        file_bytes: int | None = None,
        ignored: tuple[int, ...] = (),
        broken: bool = False,
        patches: Mapping[str, Any] | None = None,
    ) -> Launch:
        """Start `sae-sweeps WORDS` in `home`.

        Args:
            file_bytes: no file that it writes may be larger.
            ignored: signals that it starts with ignored, as after `nohup`.
            broken: nobody reads what it writes to stdout and stderr.
            patches: values for `module:name`, such as limits of time.
        """
        home.mkdir(parents=True, exist_ok=True)
        self.count += 1
        question = {
            **{"home": str(home), "words": words, "number": self.count, "ignored": ignored},
            **{"file_bytes": file_bytes, "broken": broken, "patches": dict(patches or {})},
        }
        return Launch(self, self.ask(question), home, self.count)

    def run(self, home: Path, *words: str, **also: Any) -> Launch:
        """Run `sae-sweeps WORDS` in `home` to its end."""
        launch = self.start(home, *words, **also)
        launch.wait()
        return launch

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


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


# --- Inside the process --------------------------------------------------------------------


def serve() -> None:
    """Fork, or say how a fork ended, once per line on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    sys.path[0] = str(ROOT)
    load()
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            pid, status = os.waitpid(question["wait"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                answers.close()
                os._exit(_launch(**question))
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


def _launch(
    home: str,
    words: list[str],
    number: int,
    ignored: list[int],
    broken: bool,
    file_bytes: int | None,
    patches: dict[str, Any],
) -> int:
    """Be the command; returns the exit code once all is written."""
    import importlib
    import traceback

    os.setsid()
    os.chdir(home)
    for handle, name in enumerate((os.devnull, f"out-{number}", f"err-{number}")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), handle)
    if broken:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
    for signum in ignored:
        signal.signal(signum, signal.SIG_IGN)
    if file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    for place, value in patches.items():
        module, _, attribute = place.partition(":")
        setattr(importlib.import_module(module), attribute, value)
    sys.argv = ["sae-sweeps", *words]
    sys.orig_argv = [sys.executable, *sys.argv]
    from sae_sweeps.__main__ import main

    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1 if code else 0


if __name__ == "__main__":
    serve()
