"""Kills a sweep with `kill -9` at random moments, and launches it again until it is done.

python -m tests.benchmarks.kills

Keeps under results/ what became of its weights, its rows, and what W&B has after `wandb sync`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.slurm.sweeps import left_behind
from tests.support.wandb_backend import Backend, ServedRun

RESULTS = Path(__file__).parent / "results"
WORDS = (
    *("method=topk,mutual_choice", "d_sae=256", "device=cpu", "hydra.launcher.workers=1"),
    *("stream.batch_tokens=1024", "stream.chunk_tokens=8192", "stream.calibration_tokens=4096"),
    *("stream.repeat=true", "evaluation.tokens=16384", "evaluation.ce_tokens=4096"),
)
"""One pack; how many runs, and how long, is to be added, `training.tokens` last."""
FOUR_RUNS = (
    *("k=8,16", "training.log_every_tokens=2048", "checkpoint_minutes=0.005"),
    "training.tokens=262144",
)
"""About 20 s of training on two cores, saved every 0.3 s."""
OFFLINE = ("tracking=wandb", "tracking.mode=offline")
KILLS = 20
SEED = 0
LOADING_S = 4.0
TRAINING_S = 1.6


@dataclass(frozen=True)
class Kill:
    """One kill."""

    what: str
    """`all` processes, or `python` alone, which leaves W&B's without its master."""
    seconds: float
    """After the launch."""
    phase: str
    tokens: list[int]
    """Of each run, as its rows have it."""


@dataclass
class Sweep:
    """A sweep that is killed, and its home."""

    home: Path
    words: Sequence[str]
    backend: Backend
    training_s: float
    """Three of four kills come within so many seconds of training, the others while it loads."""
    kills: list[Kill] = field(default_factory=list[Kill])

    @property
    def folder(self) -> Path:
        """Where the sweep's files are."""
        return self.home / "outputs" / "it"

    @property
    def runs(self) -> list[Path]:
        """The runs' folders, once there are any."""
        return sorted((self.folder / "runs").glob("*-*"))

    @property
    def env(self) -> dict[str, str]:
        """Nothing of this user's, and the server in place of W&B's own."""
        names = ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "NETRC")
        kept = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
        kept |= dict.fromkeys(names, str(self.home)) | {"OMP_NUM_THREADS": "1"}
        kept |= {"WANDB_BASE_URL": self.backend.url, "WANDB_API_KEY": "k" * 40}
        return kept | {"WANDB_ERROR_REPORTING": "false"}

    def launch(self, tracking: Sequence[str] = OFFLINE) -> subprocess.Popen[bytes]:
        """Give the same command again."""
        command = [sys.executable, "-m", "sae_sweeps", "name=it", *self.words, *tracking]
        with (self.home / "out.log").open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=self.home,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    def kill(self, what: str, rng: random.Random) -> bool:
        """Launch, and kill at a random moment; says whether the sweep was over before."""
        attempts = self.attempts()
        process, began = self.launch(), time.monotonic()
        if len(self.kills) % 4 != 3:
            while process.poll() is None and self.attempts() == attempts:
                time.sleep(0.02)
            pause = rng.uniform(0, self.training_s)
        else:
            pause = rng.uniform(0, LOADING_S)
        try:
            code = process.wait(pause)
        except subprocess.TimeoutExpired:
            phase = "loading" if self.attempts() == attempts else self._phase()
            end(process, what)
            seconds = round(time.monotonic() - began, 2)
            self.kills.append(Kill(what, seconds, phase, [tokens(run) for run in self.runs]))
            return False
        assert code == 0, (self.home / "out.log").read_text()
        return True

    def finish(self) -> None:
        """Launch a last time and let it come to its end."""
        code = self.launch().wait(300)
        assert code == 0, (self.home / "out.log").read_text()

    def attempts(self) -> dict[str, int]:
        """What differs once an attempt trains: each one begins a new file of rows."""
        paths = [run / "metrics.jsonl" for run in self.runs]
        return {path.parent.name: path.stat().st_ino for path in paths if path.exists()}

    def _phase(self) -> str:
        length = int(self.words[-1].partition("=")[2])
        open_runs = [run for run in self.runs if not (run / "result.json").exists()]
        if not open_runs:
            return "the report"
        if any(tokens(run) >= length for run in open_runs):
            return "an evaluation"
        return "training"

    def sync(self) -> None:
        """Upload as users do."""
        command = [sys.executable, "-m", "wandb", "sync", str(self.folder / "wandb")]
        done = subprocess.run(command, cwd=self.home, env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def end(process: subprocess.Popen[bytes], what: str) -> None:
    """`kill -9` Python, and what it started with it where that is asked for."""
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    for pid in [*(children if what == "all" else []), process.pid]:
        os.kill(pid, signal.SIGKILL)
    process.wait()


def tokens(run: Path) -> int:
    """How far a run's rows are; a row that a kill tore does not count."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    whole = [line for line in lines if line.endswith("\n")]
    return json.loads(whole[-1])["tokens"] if whole else 0


@dataclass(frozen=True)
class Rows:
    """What W&B has of a run, beside what it should have."""

    run: str
    expected: int
    served: int
    missing: int
    doubled: int
    equal: bool
    """Whether the rows are the same ones, in the same order."""
    other_ids: int
    """Further W&B runs that this one was told in: none may be needed."""


def rows(sweep: Sweep, run: Path) -> Rows:
    """Compare a run's own rows with those that the server has."""
    own = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    wanted = [{"tokens_seen": row.pop("tokens"), **row} for row in own]
    id = (run / "wandb_id.txt").read_text().strip()
    found = sweep.backend.runs.get(id, ServedRun("", "", id)).rows()
    served = [{k: v for k, v in row.items() if not k.startswith("_")} for row in found]
    seen = Counter(row["tokens_seen"] for row in served)
    return Rows(
        run.name,
        len(wanted),
        len(served),
        sum(row["tokens_seen"] not in seen for row in wanted),
        sum(count - 1 for count in seen.values()),
        served == wanted,
        sum(other.startswith(id) and other != id for other in sweep.backend.runs),
    )


@dataclass(frozen=True)
class Outcome:
    """What all kills of a sweep did."""

    kills: list[Kill]
    equal: bool
    """Whether weights, rows and figures are the undisturbed sweep's."""
    rows: list[Rows]

    @property
    def well(self) -> bool:
        """Whether nothing was lost."""
        return self.equal and all(
            each.equal and not (each.missing or each.doubled or each.other_ids)
            for each in self.rows
        )


def undisturbed(home: Path, words: Sequence[str]) -> dict[str, Any]:
    """What the sweep leaves when nobody kills it."""
    home.mkdir()
    sweep = Sweep(home, words, Backend(), 0.0)
    sweep.backend.url = ""
    assert sweep.launch(["tracking=off"]).wait(300) == 0, (home / "out.log").read_text()
    return left_behind(sweep.folder)


def killed(
    home: Path,
    words: Sequence[str],
    expected: dict[str, Any],
    rng: random.Random,
    count: int = KILLS,
    training_s: float = TRAINING_S,
) -> Outcome:
    """Kill a sweep so often, or until it is over, finish it, and compare."""
    home.mkdir()
    with Backend() as backend:
        sweep = Sweep(home, words, backend, training_s)
        over = False
        while not over and len(sweep.kills) < count:
            over = sweep.kill(("all", "python")[len(sweep.kills) % 2], rng)
        if not over:
            sweep.finish()
        sweep.sync()
        equal = left_behind(sweep.folder) == expected
        return Outcome(sweep.kills, equal, [rows(sweep, run) for run in sweep.runs])


def keep(outcomes: Sequence[Outcome]) -> None:
    """Write figures and table."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    every = [each for outcome in outcomes for each in outcome.rows]
    content = [asdict(outcome) for outcome in outcomes]
    (RESULTS / "kills.json").write_text(json.dumps(content, indent=1) + "\n")
    phases, whats = Counter(kill.phase for kill in kills), Counter(kill.what for kill in kills)
    text = f"""# `kill -9` at random moments

`python -m tests.benchmarks.kills`: a packed sweep of 4 runs, launcher local, W&B offline, killed
{len(kills)} times ({told(whats)}; `python` leaves W&B's own process running)
and launched again by the same command each time, until done. Then `wandb sync` to a server.

| | |
|---|---|
| kills during | {told(phases)} |
| sweeps it took | {len(outcomes)} |
| sweeps equal to the undisturbed one in weights, rows, figures | {sum(o.equal for o in outcomes)} |
| rows that W&B should have | {sum(each.expected for each in every)} |
| rows that it has | {sum(each.served for each in every)} |
| of them missing | {sum(each.missing for each in every)} |
| doubled | {sum(each.doubled for each in every)} |
| runs whose rows are equal, in order | {sum(each.equal for each in every)} of {len(every)} |
| runs told under more than one W&B id | {sum(each.other_ids > 0 for each in every)} |
"""
    (RESULTS / "kills.md").write_text(text)
    sys.stdout.write(text)


def told(counts: Counter[str]) -> str:
    """Counts in words: `15 training, 5 loading`."""
    return ", ".join(f"{count} {what}" for what, count in counts.most_common())


def main() -> None:
    """Kill, compare, keep."""
    words, rng = [*WORDS, *FOUR_RUNS], random.Random(SEED)
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        expected = undisturbed(Path(name) / "undisturbed", words)
        outcomes: list[Outcome] = []
        left = KILLS
        while left:
            home = Path(name) / str(len(outcomes))
            outcomes.append(killed(home, words, expected, rng, left))
            left -= len(outcomes[-1].kills)
        keep(outcomes)
    assert all(outcome.well for outcome in outcomes)


if __name__ == "__main__":
    main()
