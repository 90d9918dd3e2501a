"""The state of a sweep's runs, judged by its files, its locks and what SLURM says."""

import math
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sae_sweeps.errors import one_line
from sae_sweeps.record import manifest
from sae_sweeps.record.folder import RunFolder, SweepFolder, last_lines
from sae_sweeps.record.manifest import Manifest
from sae_sweeps.record.plan import Point
from sae_sweeps.record.result import Failure, Result
from sae_sweeps.record.run import label
from sae_sweeps.system import cluster, files

STATES = ("done", "running", "pending", "preempted", "failed", "lost")
"""In the order in which they are told.

done: `result.json` of this identity. failed: `failed.json`. running: a process trains it.
preempted: its job was stopped and waits to go on. pending: it waits for its turn. lost: nobody
works on it and nobody will: it was killed or cancelled, or never started.
"""
UNDER_WAY = ("running", "pending", "preempted")

AT_WORK = frozenset({"RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED"})
"""SLURM's words for a live job that has its nodes; any other live one waits for some."""


@dataclass(frozen=True)
class RunStatus:
    """What can be said of one run; figures are None where they are not known or not finite."""

    name: str
    label: str
    k: float
    seed: int
    state: str
    """One of `STATES`."""
    tokens: int
    """Trained so far."""
    total_tokens: int
    tokens_per_s: float | None
    """At the last row of a running run's metrics, over the whole of a finished one."""
    l0: float | None
    """Of the last training batch in `metrics.jsonl`; of a finished run, on held-out tokens."""
    fvu: float | None
    job: str | None
    """Its SLURM job; None for a run of a local process."""
    node: str
    """Where it is at work: a node of SLURM's, or this machine's name; else empty."""
    reason: str
    """Why it failed, was lost or waits; else empty."""
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    """A finished run's figures."""

    @property
    def title(self) -> str:
        """What tells it from the others, for people."""
        return f"{self.label}, k {self.k:g}, seed {self.seed}"


@dataclass(frozen=True)
class SweepStatus:
    """What can be said of a sweep."""

    name: str
    folder: Path
    runs: list[RunStatus]
    """In the order of the manifest's points, each once."""
    problem: str
    """Why SLURM could not be asked, so that jobs are judged by their files alone; else empty."""
    jobs: list[str]
    """The SLURM jobs of unfinished runs that run or wait."""
    strangers: list[str]
    """Jobs that the manifest names and that were not submitted from this folder."""

    @property
    def counts(self) -> dict[str, int]:
        """How many runs are in each state, of all `STATES`."""
        return {state: sum(run.state == state for run in self.runs) for state in STATES}

    @property
    def over(self) -> bool:
        """Whether nothing will happen by itself any more."""
        return not any(run.state in UNDER_WAY for run in self.runs)

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain data."""
        facts = {"name": self.name, "folder": str(self.folder), "over": self.over}
        runs = [asdict(run) for run in self.runs]
        return facts | {"problem": self.problem, "counts": self.counts, "runs": runs}


def shown(folder: Path) -> str:
    """Name a folder as one would type it here."""
    return shlex.quote(os.path.relpath(folder))


def read(folder: Path) -> SweepStatus:
    """Judge every run of a sweep; SLURM is asked at most once.

    Who is at work is asked before the files are read. So a run that ends meanwhile is found to be
    running or done, and never lost.

    Raises:
        ConfigError: for a folder that is no sweep's, or whose manifest has another version.
    """
    place = SweepFolder(folder)
    held = files.is_locked(place.lock)
    found = manifest.read(folder)
    points = dict(zip(found.runs, found.points, strict=True))
    results = {name: place.run(name).result_of(point.config) for name, point in points.items()}
    packs = [found.pack_of(name) for name, result in results.items() if result is None]
    known, problem = _ask({pack.job for pack in packs if pack and pack.job})
    jobs = {id: job for id, job in known.items() if _is_of(job, found.name, place)}
    strangers = sorted(known.keys() - jobs)
    around = _Around(place, found, held, jobs, strangers, problem)
    runs = [_judge(name, point, results[name], around) for name, point in points.items()]
    live = sorted(job.id for job in jobs.values() if job.live)
    return SweepStatus(found.name, folder, runs, problem, live, strangers)


@dataclass(frozen=True)
class _Around:
    """What is known of the sweep, and not of one run alone."""

    folder: SweepFolder
    manifest: Manifest
    held: bool
    """Whether a launch is at work."""
    jobs: dict[str, cluster.Job]
    strangers: list[str]
    problem: str


@dataclass(frozen=True)
class _Verdict:
    """A run's state."""

    state: str
    reason: str = ""
    node: str = ""


def _ask(ids: set[str]) -> tuple[dict[str, cluster.Job], str]:
    """Ask SLURM about jobs; what it knows, and why it could not be asked."""
    try:
        return (cluster.jobs(sorted(ids)) if ids else {}), ""
    except cluster.ClusterError as error:
        return {}, one_line(error)


def _is_of(job: cluster.Job, name: str, place: SweepFolder) -> bool:
    """Tell whether a job was submitted from this folder, and not from one that was copied here.

    Its script is put into `packs/`, its output into a folder there; where a cluster's own sbatch
    moves scripts about, the output tells.
    """
    folders = [folder for file in job.files for folder in file.parents[:2]]
    here = any(files.is_same(folder, place.packs) for folder in folders)
    return job.name == name and (here or not job.files)


def _judge(name: str, point: Point, result: Result | None, around: _Around) -> RunStatus:
    run = around.folder.run(name)
    locked = files.is_locked(run.lock)  # before the files are read
    result = result or run.result_of(point.config)
    failure = run.failure()
    verdict = _verdict(run, result, failure, locked, around)
    pack = around.manifest.pack_of(name)
    row = run.last_row()
    tokens, figures = (row.tokens, row.figures) if row else (0, {})
    l0, fvu = figures.get("train/l0"), figures.get("train/fvu")
    speed = figures.get("perf/tokens_per_s") if verdict.state == "running" else None
    metrics: dict[str, float] = {}
    if result is not None:
        metrics = _numbers(result.metrics)
        tokens, speed = result.tokens, result.cost.get("tokens_per_s")
        l0, fvu = metrics.get("l0"), metrics.get("fvu")
    elif failure is not None and failure.tokens is not None:
        tokens = failure.tokens
    return RunStatus(
        name=name,
        label=label(point.choices),
        k=point.config.k,
        seed=point.config.seed,
        state=verdict.state,
        tokens=int(_number(tokens) or 0),
        total_tokens=point.config.total_tokens,
        tokens_per_s=_number(speed),
        l0=_number(l0),
        fvu=_number(fvu),
        job=pack.job if pack else None,
        node=verdict.node,
        reason=verdict.reason,
        metrics=metrics,
    )


def _verdict(
    run: RunFolder,
    result: Result | None,
    failure: Failure | None,
    locked: bool,
    around: _Around,
) -> _Verdict:
    """Find a run's state: the first that holds."""
    if result is not None:
        return _Verdict("done")
    if failure is not None:
        return _Verdict("failed", one_line(failure.error))
    launch, pack = around.manifest.planned(run.path.name) or (None, None)
    number = pack.job if pack else None
    job = around.jobs.get(number) if number else None
    if job is not None and job.live and (locked or job.state in AT_WORK):
        return _Verdict("running", node=job.node)
    if locked:
        return _Verdict("running", node=launch.host if launch and number is None else "")
    if job is not None and job.live:
        return _Verdict("preempted" if job.restarts else "pending", _why(job), job.node)
    if around.held and number is None and launch is around.manifest.launches[-1]:
        return _Verdict("pending", "waits for its turn")
    return _Verdict("lost", _loss(run, number, job, around))


def _loss(run: RunFolder, number: str | None, job: cluster.Job | None, around: _Around) -> str:
    """Say what is known of why nobody works on a run."""
    if number and around.problem:
        return "SLURM could not be asked about its job"
    if number in around.strangers:
        return f"its job {number} is not of this sweep's folder"
    if number:
        said = "SLURM does not know its job any more"
        if job is not None:
            said = f"its job ended as {_why(job, first=job.state)}"
        return f"{said}{_last_words(around.folder.job_errors(number))}"
    return "the process that trained it is gone" if run.log.exists() else "it was never started"


def _last_words(path: Path) -> str:
    """Quote what SLURM, or else the process itself, last wrote into a job's log of errors."""
    lines = last_lines(path)
    step = [line for line in lines if line.startswith("slurmstepd") and "***" not in line]
    noise = ("slurmstepd", "srun", "submitit")
    own = [line for line in lines if line.strip() and not line.startswith(noise)]
    said = [*own[-1:], *step[-1:]]
    return f" ({one_line(said[-1].rpartition('error: ')[2])})" if said else ""


def _why(job: cluster.Job, first: str = "") -> str:
    return ": ".join(word for word in (first, job.reason) if word)


def _numbers(metrics: Mapping[str, object]) -> dict[str, float]:
    found = {name: _number(figure) for name, figure in metrics.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def _number(value: object) -> float | None:
    """Take a finite number; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None
