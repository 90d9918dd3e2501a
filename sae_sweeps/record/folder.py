"""The files of a run and of a sweep: what they are called, their versions, how they are read.

Nothing else in the package knows a file's name. Formats that are more than plain data have a
module of their own: `manifest`, `checkpoint`, and `launching.packs`.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omegaconf import OmegaConf

from sae_sweeps.config.options import RunConfig
from sae_sweeps.errors import one_line
from sae_sweeps.record.identity import identity
from sae_sweeps.record.result import Failure, Result, Row
from sae_sweeps.system import files

RESULT_VERSION = 2
"""Of `result.json`; version 1 has the config of the first version (see `config.history`)."""
MANIFEST_VERSION = 3
"""Of `sweep.json`; version 2 has configs of the first version."""
PACK_VERSION = 3
"""Of `packs/*.json`; versions 1 and 2 say where modules are, and 1 has configs of the first."""
CHECKPOINT_VERSION = 2
TAIL = 1 << 16
"""Bytes read from the end of a file whose last lines are asked for."""
LOCK = ".lock"


@dataclass(frozen=True)
class RunFolder:
    """`outputs/<sweep>/runs/<run>`: what one run leaves. What a crash tore counts as not there."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.path / LOCK

    @property
    def log(self) -> Path:
        """What the run tells, with the traceback of a failure."""
        return self.path / "run.log"

    @property
    def metrics(self) -> Path:
        """A row of JSON for every so many tokens of training."""
        return self.path / "metrics.jsonl"

    @property
    def sae(self) -> Path:
        """The trained SAE in SAELens' layout."""
        return self.path / "sae"

    @property
    def checkpoints(self) -> Path:
        """States to go on from, and in the end the weights."""
        return self.path / "checkpoint"

    @property
    def weights(self) -> Path:
        """All parameters and buffers of the trained SAE, in the target model's units."""
        return self.checkpoints / "weights.safetensors"

    # --- The config ------------------------------------------------------------------------

    def begin(self, config: RunConfig, overrides: list[str]) -> None:
        """Write what is to be trained; an earlier failure is forgotten."""
        self.path.mkdir(parents=True, exist_ok=True)
        for name, content in (("config", config.tree), ("overrides", overrides)):
            text = OmegaConf.to_yaml(OmegaConf.create(content))
            files.write_text(self.path / f"{name}.yaml", text)
        self.failed.unlink(missing_ok=True)

    # --- How it ended ----------------------------------------------------------------------

    @property
    def finished(self) -> Path:
        """The result, whose being there says that the run is finished."""
        return self.path / "result.json"

    @property
    def failed(self) -> Path:
        """Why there is no result."""
        return self.path / "failed.json"

    def result(self) -> Result:
        """Read the result.

        Raises:
            OSError: there is none.
            ValueError: it is torn, or of a version that is not known here.
        """
        found = json.loads(self.finished.read_text(encoding="utf-8"))
        version = found.get("version") if isinstance(found, dict) else None
        if version not in (1, RESULT_VERSION):
            raise ValueError(f"version {version} of result.json is not known here")
        return Result.of(found)

    def result_of(self, config: RunConfig) -> Result | None:
        """Read the result if it is whole, and of this identity."""
        try:
            result = self.result()
            return result if identity(result.config) == identity(config) else None
        except (OSError, ValueError):
            return None

    def finish(self, result: Result) -> None:
        """Write the result."""
        files.write_json(self.finished, {"version": RESULT_VERSION} | result.as_json())

    def failure(self) -> Failure | None:
        """Read why the run failed; None if it did not."""
        try:
            found = json.loads(self.failed.read_text(encoding="utf-8"))
            return Failure(one_line(found["error"]), found.get("tokens"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return Failure("failed.json cannot be read")

    def fail(self, failure: Failure) -> None:
        """Write why the run failed."""
        files.write_json(self.failed, failure.as_json())

    # --- Rows of metrics -------------------------------------------------------------------

    def rows(self, at_most: int | None = None) -> list[Row]:
        """Read the rows, or some at equal distances with the last among them."""
        lines = self._lines()
        step = 1 if at_most is None else max(1, -(-len(lines) // at_most))
        return list(_whole(lines[::-step][::-1]))

    def last_row(self) -> Row | None:
        """Read the last whole row, from the file's end."""
        return next(_whole(reversed(last_lines(self.metrics))), None)

    def cut_rows(self, tokens: int) -> None:
        """Leave out the rows that came after so many tokens, or that are torn."""
        kept = [row for row in _whole(self._lines()) if row.tokens <= tokens]
        files.write_text(self.metrics, "".join(f"{row.line}\n" for row in kept))

    def _lines(self) -> list[str]:
        """Read the lines, but for the last one where a crash tore it."""
        try:
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            return [line for line in lines if line.endswith("}")]
        except (FileNotFoundError, NotADirectoryError):
            return []

    # --- Checkpoints -----------------------------------------------------------------------

    def step(self, tokens: int) -> Path:
        """Where the checkpoint after so many tokens goes."""
        return self.checkpoints / f"step-{tokens:015d}.safetensors"

    @property
    def steps(self) -> list[Path]:
        """The checkpoints that are there, the last one last."""
        return sorted(self.checkpoints.glob("step-*.safetensors"))

    @property
    def saved_tokens(self) -> int:
        """How many tokens the last checkpoint has seen; 0 without one."""
        steps = self.steps
        return int(steps[-1].stem.removeprefix("step-")) if steps else 0


@dataclass(frozen=True)
class SweepFolder:
    """`outputs/<sweep>`: what a sweep's launches and reports leave besides its runs."""

    path: Path

    @property
    def lock(self) -> Path:
        """Held by a launch at work."""
        return self.path / LOCK

    @property
    def manifest(self) -> Path:
        """The points, and of every launch its packs and their jobs."""
        return self.path / "sweep.json"

    # --- Runs ------------------------------------------------------------------------------

    @property
    def home(self) -> Path:
        """Where the runs' folders are."""
        return self.path / "runs"

    def run(self, name: str) -> RunFolder:
        """Give a run's folder, be it there or not; raises ConfigError for what is no name."""
        return RunFolder(self.home / files.plain_name(name))

    @property
    def runs(self) -> list[RunFolder]:
        """The folders of runs that are there, by name."""
        return [self.run(path.name) for path in sorted(self.home.glob("[!.]*")) if path.is_dir()]

    def aside(self, time: str) -> Path:
        """Where a launch puts the folders of runs that it trains anew."""
        return self.path / "aside" / time.replace(":", "-")

    # --- Packs -----------------------------------------------------------------------------

    @property
    def packs(self) -> Path:
        """Where packs are frozen for other processes, and what these write."""
        return self.path / "packs"

    def pack(self, name: str) -> "PackFiles":
        """Give the files of a pack of another process; raises ConfigError for what is no name."""
        return PackFiles(self.packs / f"{files.plain_name(name)}.json")

    def job_errors(self, job: str) -> Path:
        """What SLURM and submitit wrote of a job that is no task of an array of ours."""
        return self.packs / files.plain_name(job) / f"{job}_0_log.err"

    @property
    def report_lock(self) -> Path:
        """Held by the pack that writes the report."""
        return self.packs / ".report.lock"

    @property
    def reported(self) -> Path:
        """What the last report of a pack told."""
        return self.packs / "reported.json"

    # --- The report ------------------------------------------------------------------------

    @property
    def page(self) -> Path:
        """The report to look at."""
        return self.path / "report.html"

    @property
    def table(self) -> Path:
        """A line for each run, with all its figures."""
        return self.path / "pareto.csv"

    @property
    def picture(self) -> Path:
        """The curves."""
        return self.path / "pareto.png"

    @property
    def similarities(self) -> Path:
        """How alike decoders of two seeds are, by the weights compared."""
        return self.path / "seed_similarity.json"


@dataclass(frozen=True)
class PackFiles:
    """`packs/1-0.json`, all that a process needs to train a pack, and what it leaves beside."""

    frozen: Path

    @property
    def name(self) -> str:
        """`<launch>-<i>`."""
        return self.frozen.stem

    @property
    def sweep(self) -> SweepFolder:
        """The sweep's folder, where this machine has it."""
        return SweepFolder(self.frozen.parent.parent)

    @property
    def log(self) -> Path:
        """What the process tells."""
        return self.frozen.with_suffix(".log")

    @property
    def out(self) -> Path:
        """What it prints besides: a crash's last words."""
        return self.frozen.with_suffix(".out")

    @property
    def starts(self) -> Path:
        """When it was started, and how far its runs were then."""
        return self.frozen.with_suffix(".starts.json")


def last_lines(path: Path) -> list[str]:
    """Read lines from a file's end, many of a long one; none where there is no file."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - TAIL, 0))
            return file.read().decode(errors="replace").splitlines()
    except OSError:
        return []


def _whole(lines: Iterable[str]) -> Iterator[Row]:
    for line in lines:
        try:
            yield Row.of(line)
        except ValueError:
            continue
