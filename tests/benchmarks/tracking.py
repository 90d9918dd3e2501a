"""What tracking costs: 1, 8 and 24 runs in a process, offline, online and with a server that dies.

python -m tests.benchmarks.tracking

Each job is a process of its own that trains runs of the main job and logs as many rows as the main
job does. Jobs with W&B are compared with one without, in the same round, whose order turns; as
those differ by chance more than by W&B, a job that only logs says what W&B takes of the processor.
The server is a process of its own on the loopback interface. Kept under results/.
"""

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any, final

from sae_sweeps.record.result import Result, Row
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking
from tests.benchmarks.main_job import RESULTS, processor

ROUNDS = 2
MODES = ("off", "offline", "online")
TOKENS = {1: 1_310_720, 8: 655_360, 24: 655_360}
"""Per run, by the number of runs; 655,360 in the main job."""
EVERY_S = {1: 0.3, 8: 0.8, 24: 2.4}
"""How long it takes from row to row, by the number of runs; for jobs that only log."""
LOADED = ("torch._dynamo", "transformer_lens.model_bridge", "transformers.models.gpt2")
"""What training loads later on, and W&B never does."""
FIGURES = 11
"""Of each row, as in the main job."""
ROWS = 50
"""Of each run, as in the main job."""
OPTIONS = ("evaluation.tokens=8192", "evaluation.ce_tokens=1024")
METHODS = ("relu", "gated", "jumprelu", "topk", "mutual_choice", "feature_choice")
LIMIT_S = 5.0
"""What the end of a job waits for a server that is dead; 60 s by default."""


# --- A job ---------------------------------------------------------------------------------


@final
class Timed(Tracking, TrackedRun):
    """A tracker, or one of its runs, whose `log` is timed."""

    def __init__(self, inner: Any, seconds: list[float]) -> None:
        self.inner, self.seconds = inner, seconds

    def open(self, run: Run) -> TrackedRun:
        """Time the calls of this run's mirror."""
        return Timed(self.inner.open(run), self.seconds)

    def log(self, row: Row) -> None:
        """Log, and note how long it took."""
        began = time.perf_counter()
        self.inner.log(row)
        self.seconds.append(time.perf_counter() - began)

    def finish(self, result: Result | None) -> None:
        """Pass it on."""
        self.inner.finish(result)

    def preempt(self) -> None:
        """Pass it on."""
        self.inner.preempt()

    def summarise(self, summary: Summary) -> None:
        """Pass it on."""
        self.inner.summarise(summary)

    def close(self, limit_s: float | None = None) -> None:
        """Pass it on."""
        self.inner.close(limit_s)


def job(place: Path, mode: str, count: int) -> dict[str, Any]:
    """Train `count` runs in this process; what it took, and when its rows were logged."""
    from sae_sweeps.config.signature import build
    from sae_sweeps.tracking.wandb import service, session
    from tests.support.small import Quiet, train_pack

    for name in LOADED:
        importlib.import_module(name)
    if mode == "dying":
        session.FINISH_LIMIT_S = LIMIT_S
    runs = [a_run(place, index, count, mode) for index in range(count)]
    seconds: list[float] = []
    tracking = Timed(build(runs[0].config.nodes["tracking"]), seconds)
    before, began = used(), time.monotonic()
    if "alone" in mode:
        log_only(runs, tracking)
    else:
        outcomes = train_pack(runs, Quiet(), tracking)
        assert not [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    trained = time.monotonic()
    tracking.close()
    ended = time.monotonic()
    if "alone" in mode:
        service.tear_down()  # so that its time is counted
    logging_s = used() + used(resource.RUSAGE_CHILDREN) - before
    times = {"wall_s": ended - began, "close_s": ended - trained, "cpu_before_s": before}
    return times | {"log_s": seconds, "logging_cpu_s": logging_s}


def log_only(runs: list[Run], tracking: Tracking) -> None:
    """Log as many rows as training does, in the same time."""
    for run in runs:
        run.folder.mkdir(parents=True)
    opened = [tracking.open(run) for run in runs]
    row = dict[str, float]()
    for number in range(1, ROWS + 1):
        time.sleep(EVERY_S[len(runs)])
        row = {f"train/{index}": number / (index + 1) for index in range(FIGURES)}
        for tracked in opened:
            tracked.log(Row(number, row))
    for run, tracked in zip(runs, opened, strict=True):
        tracked.finish(
            Result(
                label=run.label, choices=run.choices, config=run.config, tokens=ROWS, metrics=row
            )
        )


def a_run(place: Path, index: int, count: int, mode: str) -> Run:
    """A run of the main job: its methods and its `k`s in turn."""
    from tests.support.small import small_run

    words = [f"method={METHODS[index % 6]}", f"k={(4, 8, 16, 32)[index // 6 % 4]}", "d_sae=1024"]
    words += ["stream.batch_tokens=1024", "stream.chunk_tokens=32768", *OPTIONS]
    words += ["stream.calibration_tokens=16384", f"training.tokens={TOKENS[count]}"]
    words += [f"training.log_every_tokens={TOKENS[count] // ROWS}"]
    words += [f"tracking={'off' if mode == 'off' else 'wandb'}"]
    return small_run(place / "sweep" / "runs", *words)


def used(who: int = resource.RUSAGE_SELF) -> float:
    """CPU seconds that this process has used, or its children that have ended."""
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


# --- The rounds ----------------------------------------------------------------------------


@contextmanager
def served(place: Path) -> Generator[subprocess.Popen[str]]:
    """The server's process; the file `url` in `place` says where it is."""
    command = [sys.executable, "-m", __spec__.name, "serve", str(place)]
    process = subprocess.Popen(command, text=True)
    while not (place / "url").exists():
        time.sleep(0.02)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def serve(place: Path) -> None:
    """Be the server."""
    from tests.support.wandb_backend import Backend

    with Backend() as backend:
        (place / "new").write_text(backend.url)
        (place / "new").rename(place / "url")
        signal.pause()


def measure(mode: str, count: int) -> dict[str, Any]:
    """Run a job, and add its CPU seconds, those of W&B's own process among them."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with served(place) as server:
            env = {key: value for key, value in os.environ.items() if "WANDB" not in key}
            env |= dict.fromkeys(("HOME", "WANDB_CONFIG_DIR"), name) | {"OMP_NUM_THREADS": "1"}
            env |= {"WANDB_BASE_URL": (place / "url").read_text(), "WANDB_API_KEY": "k" * 40}
            env["WANDB_MODE"] = "offline" if "offline" in mode else "online"
            command = [sys.executable, "-m", __spec__.name, "job", name, mode, str(count)]
            process = subprocess.Popen(command, env=env)
            if mode == "dying":
                kill_midway(server, place)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        found = json.loads((place / "job.json").read_text())
    cpu_s = usage.ru_utime + usage.ru_stime - found.pop("cpu_before_s")
    return found | {"cpu_s": cpu_s, "mode": mode, "runs": count}


def kill_midway(server: subprocess.Popen[str], place: Path) -> None:
    """End the server once a third of the rows are there."""
    while True:
        lengths = [len(path.read_text().splitlines()) for path in place.rglob("metrics.jsonl")]
        if len(lengths) == 8 and min(lengths) > ROWS // 3:
            server.kill()
            return
        time.sleep(0.05)


def a_round(number: int) -> list[dict[str, Any]]:
    """Measure every job, in an order that turns with the rounds."""
    turned = [*MODES[number % 3 :], *MODES[: number % 3]]
    found = [measure(mode, count) for count in TOKENS for mode in turned]
    found += [measure(f"{mode} alone", count) for count in TOKENS for mode in MODES[1:]]
    return [*found, measure("dying", 8)]


# --- The table -----------------------------------------------------------------------------


def summary(found: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per number of runs and mode: ratios within rounds, and all calls of `log`."""
    keys = [(count, mode) for count in TOKENS for mode in MODES[1:]] + [(8, "dying")]
    return [figures(found, count, mode) for count, mode in keys]


def figures(found: list[list[dict[str, Any]]], count: int, mode: str) -> dict[str, Any]:
    """What tracking cost in one kind of job."""

    def each(what: str, of: str) -> list[float]:
        return [next(j[what] for j in r if (j["runs"], j["mode"]) == (count, of)) for r in found]

    def against(what: str, by: Callable[[float, float], float]) -> list[float]:
        return [by(a, b) for a, b in zip(each(what, mode), each(what, "off"), strict=True)]

    jobs = [j for r in found for j in r if (j["runs"], j["mode"]) == (count, mode)]
    calls = sorted(second for j in jobs for second in j["log_s"])
    walls, cpus = (against(what, lambda a, b: a / b - 1) for what in ("wall_s", "cpu_s"))
    return {
        "runs": count,
        "mode": mode,
        "off_wall_s": round(median(each("wall_s", "off")), 1),
        "off_cpu_s": round(median(each("cpu_s", "off")), 1),
        "wall_percent": [round(100 * value, 2) for value in sorted(walls)],
        "cpu_percent": [round(100 * value, 2) for value in sorted(cpus)],
        "alone_cpu_s": round(median(each("logging_cpu_s", f"{mode} alone")), 2)
        if mode in MODES
        else None,
        "close_s": round(median(each("close_s", mode)), 2),
        "calls": len(calls),
        "log_us": [round(1e6 * calls[int(q * (len(calls) - 1))]) for q in (0.5, 0.99, 1.0)],
    }


def table(found: Mapping[str, Any]) -> str:
    """The results as Markdown."""
    lines = [
        "# What tracking costs\n",
        f"`python -m tests.benchmarks.tracking`: runs of the main job, {found['tokens']} tokens",
        f"each for 1, 8 and 24 runs in a process, {ROWS} rows each; processes of their own",
        f"on {found['cores']} cores ({found['processor']}), {found['rounds']} rounds, loads",
        f"{found['loads']} around them. More time than without tracking: the median of the rounds,",
        "(least to most). CPU: of a process that only logs, W&B's own process included, against",
        "that of training. The server is on the loopback interface.\n",
        "| runs | W&B | wall without | more wall | CPU without | CPU of W&B | share |"
        " `log` p50, p99, max |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found["table"]:
        if row["mode"] != "dying":
            logs = ", ".join(f"{value:,}" for value in row["log_us"])
            share = 100 * row["alone_cpu_s"] / row["off_cpu_s"]
            lines.append(
                f"| {row['runs']} | {row['mode']} | {row['off_wall_s']} s"
                f" | {spread(row['wall_percent'])} | {row['off_cpu_s']} s"
                f" | {row['alone_cpu_s']} s | {share:.2f}% | {logs} µs |"
            )
    row = found["table"][-1]
    logs = ", ".join(f"{value:,}" for value in row["log_us"])
    lines += [
        f"\nThe server dies at a third of 8 runs: `log` takes {logs} µs (p50, p99, max of",
        f"{row['calls']:,} calls), the end of the process {row['close_s']} s of the {LIMIT_S:g} s",
        "that it was given here.",
    ]
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    """The median, and the range."""
    return f"{median(values):.1f}% ({values[0]:.1f} to {values[-1]:.1f})"


def main() -> None:
    """Measure, keep."""
    if sys.argv[1:2] == ["serve"]:
        serve(Path(sys.argv[2]))
        return
    if sys.argv[1:2] == ["job"]:
        place = Path(sys.argv[2])
        found = job(place, sys.argv[3], int(sys.argv[4]))
        (place / "job.json").write_text(json.dumps(found))
        return
    rounds: list[list[dict[str, Any]]] = []
    loads = [os.getloadavg()[0]]
    for number in range(ROUNDS):
        rounds.append(a_round(number))
        loads.append(os.getloadavg()[0])
        keep(rounds, loads)


def keep(found: list[list[dict[str, Any]]], loads: list[float]) -> None:
    """Write what there is so far."""
    told = {
        "rounds": len(found),
        "tokens": ", ".join(f"{tokens:,}" for tokens in TOKENS.values()),
        "cores": len(os.sched_getaffinity(0)),
        "processor": processor(),
        "loads": [round(load, 1) for load in loads],
        "table": summary(found),
    }
    (RESULTS / "tracking.json").write_text(json.dumps(told, indent=1) + "\n")
    (RESULTS / "tracking.md").write_text(table(told))


if __name__ == "__main__":
    main()
