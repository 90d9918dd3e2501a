"""Contenders of the engine benchmark, as processes that take turns, and ratios of their rounds."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Timer
from types import TracebackType
from typing import Any

from tests.support.places import ROOT

PEERS = Path(__file__).parent / "engine_peers.py"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
}
LIMIT_S = 600.0
"""What a contender that does not answer is given."""
WARM_ROUNDS = 1
"""Rounds that are not counted: they allocate, and load what is loaded late."""


class Failed(Exception):
    """A contender that ended; the last line of what it said."""


@dataclass(frozen=True)
class Contender:
    """How a process is started, and what of ours one of its steps is worth."""

    name: str
    case: Mapping[str, Any]
    python: Path | None = None
    """an interpreter with peers; None: ours"""
    calls: int = 1
    """calls of the gate that make a step: a pack's runs"""


def last_words(log: Path) -> str:
    """The last line that a process said, without paths."""
    lines = log.read_text(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "no message")
    return " ".join(word for word in last.split() if os.sep not in word)


class Worker:
    """A contender's process; in a `with` block, at whose end it is told to go."""

    def __init__(self, contender: Contender, home: Path) -> None:
        self.contender = contender
        folder = home / f"{contender.name}-{len(list(home.iterdir()))}"
        folder.mkdir()
        self.log = folder / "stderr.txt"
        case = json.dumps({"home": str(folder), **contender.case})
        ours = [sys.executable, "-m", "tests.benchmarks.engine_ours"]
        start = ours if contender.python is None else [str(contender.python), str(PEERS)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*start, contender.case.get("worker", contender.name), case],
                cwd=ROOT,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def steps(self, count: int) -> dict[str, float]:
        """Cost of `count` steps: seconds of CPU and by the clock, and memory's peak in MB."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps({"steps": count * self.contender.calls}) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(last_words(self.log)) from None
        watch = Timer(LIMIT_S, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        if not line:
            raise Failed(last_words(self.log))
        return json.loads(line)

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self.process.stdin and self.process.stdout
        with suppress(BrokenPipeError):  # what a process that ended was still to be told
            self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


Rounds = dict[str, list[dict[str, float]]]
"""by contender, what each round cost"""


def interleaved(
    contenders: Sequence[Contender], steps: int, rounds: int, home: Path
) -> tuple[Rounds, dict[str, str]]:
    """Let contenders take turns; their rounds, and why those that failed did."""
    spent: Rounds = {contender.name: [] for contender in contenders}
    failed: dict[str, str] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(contender, home)) for contender in contenders]
        for turn in range(WARM_ROUNDS + rounds):
            for worker in workers:
                name = worker.contender.name
                if name in failed:
                    continue
                try:
                    cost = worker.steps(steps)
                except Failed as error:
                    failed[name] = str(error)
                    del spent[name]
                    continue
                if turn >= WARM_ROUNDS:
                    spent[name].append(cost)
    return spent, failed


def paired(spent: Rounds, one: str, other: str, clock: str = "cpu_s") -> float:
    """Median over rounds of what `one` cost relative to `other` in the same round."""
    pairs = zip(spent[one], spent[other], strict=True)
    return median(left[clock] / right[clock] for left, right in pairs)


def typical(spent: Rounds, name: str, clock: str = "cpu_s") -> float:
    """Median cost of a round."""
    return median(cost[clock] for cost in spent[name])
