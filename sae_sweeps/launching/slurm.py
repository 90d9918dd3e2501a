"""The launcher `slurm`: packs as one array of SLURM jobs, submitted through submitit."""

import io
import os
import re
import shlex
import shutil
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from sae_sweeps.errors import ConfigError, did_you_mean, one_line
from sae_sweeps.launching import foretold
from sae_sweeps.launching.launcher import PlanLauncher, Told
from sae_sweeps.launching.out import complain
from sae_sweeps.launching.packs import divided, freeze
from sae_sweeps.launching.summary import results, say, tell_end, tell_plan
from sae_sweeps.launching.trying import tried
from sae_sweeps.launching.writer import Writer, as_config_error
from sae_sweeps.marks import Birth, Code
from sae_sweeps.planning import outlook
from sae_sweeps.planning.estimate import Estimate, Roofline
from sae_sweeps.planning.gpus import GPUS, USUAL, named
from sae_sweeps.planning.memory import fitting
from sae_sweeps.planning.outlook import Division
from sae_sweeps.record import manifest, status
from sae_sweeps.record.plan import Plan

OURS = ("job_name", "nodes", "ntasks_per_node", "time", "num_gpus", "use_srun")
"""Options of submitit's that would break a pack, or have one of our options for them."""
REQUEUES = 1_000_000
"""How often a job may run into its time limit and go on: a pack without progress stops itself."""
LOOK_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `hydra/launcher=slurm`; None leaves a thing to the cluster's default."""

    partition: str | None
    account: str | None
    qos: str | None
    constraint: str | None
    gpus: int | str
    """Per job: a number, or a type and a number as `a100:1`; 0 for none."""
    cpus: int
    """Per job."""
    memory: str | None
    """Per job, as `32G`."""
    gpu_memory: Annotated[str | None, Birth(None)]
    """Of each GPU, as `80G`: packs are divided so that their runs fit; None: by number alone."""
    time: int | str
    """Minutes, or `days-hours:minutes:seconds`."""
    signal_delay_s: int
    """Seconds before its end in which a job is warned."""
    array_parallelism: int
    """Jobs at the same time, at most."""
    max_runs_per_pack: int
    """Runs of one job, at most."""
    setup: Annotated[list[str], Code()]
    """Shell commands before the job."""
    extra: Annotated[dict[str, Any] | None, Code()]
    """Any other option of submitit's."""
    wait: bool
    """Stay until the last run is over."""
    objective: str | list[str] | None
    """With `wait`: what a sweeper gets of each run, a figure of its result or a list of them."""
    progress: Literal["auto", "off"]
    """With `wait`: `auto` shows how far the sweep is."""

    def __post_init__(self) -> None:
        for name in ("cpus", "array_parallelism", "max_runs_per_pack", "signal_delay_s"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"hydra.launcher.{name} is {value}, expected at least 1.")
        gpu_bytes(self.gpu_memory)
        for name in ("partition", "account", "qos", "constraint", "gpus", "memory"):
            if not str(value := getattr(self, name)).isprintable():  # it would be a line of its own
                raise ConfigError(f"hydra.launcher.{name} is {value!r}, expected one line.")
        if isinstance(self.gpus, int) and self.gpus < 0:
            raise ConfigError(f"hydra.launcher.gpus is {self.gpus}, expected at least 0.")
        if self.objective and not self.wait:
            raise ConfigError("hydra.launcher.objective needs hydra.launcher.wait=true.")
        if self.signal_delay_s >= 60 * minutes(self.time):
            text = f"hydra.launcher.signal_delay_s is {self.signal_delay_s}, expected less seconds"
            raise ConfigError(f"{text} than hydra.launcher.time has ({minutes(self.time)} min).")


def gpu_bytes(given: str | None) -> int | None:
    """Bytes of `80G`; raises ConfigError for what is no such size."""
    if given is None:
        return None
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*([MGT])i?B?", given)
    if not match or not float(match[1]):
        text = f"hydra.launcher.gpu_memory is {given!r}, expected a size such as 80G."
        raise ConfigError(text)
    return int(float(match[1]) * 10 ** {"M": 6, "G": 9, "T": 12}[match[2]])


class Slurm(PlanLauncher):
    """Submits and returns; with `wait` it stays and tells what became of the runs."""

    schema = f"{__name__}.Options"
    given: Options

    def require_figures(self) -> None:
        """Refuse to return before there are any."""
        if not self.given.wait:
            raise ConfigError("hydra.launcher.wait is false: this sweeper needs the runs' results.")
        super().require_figures()

    def divided(self, plan: Plan) -> Division:
        """As many packs as may be, of a size that a GPU's memory is said to take."""
        room = gpu_bytes(self.given.gpu_memory)
        streams = [*plan.packs, *plan.remeasured]
        packs = divided(streams, self.given.max_runs_per_pack, fitting(room))
        return Division(packs, self.given.array_parallelism, room, self._devices)

    @property
    def _devices(self) -> int:
        """How many GPUs a job has for itself: of `2`, and of `a100:2`, two."""
        count = str(self.given.gpus).rpartition(":")[2]
        return int(count) if count.isdecimal() and int(count) else 1

    def estimate(self, plan: Plan) -> Estimate:
        """By the rates of the GPU that is asked for, or of the usual one; without GPUs by a try."""
        if not self.given.gpus:  # as if jobs had the processor that is here
            side_by_side = max(1, self.given.cpus // plan.points[0].config.threads)
            return tried(plan, self.given.progress, side_by_side=side_by_side, device="cpu")
        name = next(filter(None, map(named, map(str, self._kinds()))), USUAL)
        return Roofline(GPUS[name])

    def _kinds(self) -> list[Any]:
        """Where a cluster's users name the GPU that they want."""
        given = self.given
        extra = given.extra or {}
        return [given.gpus, given.constraint, extra.get("gres"), given.partition]

    def carry_out(self, plan: Plan) -> Mapping[str, Told]:
        """Submit what is not finished, and say how to follow it."""
        packs = self.divided(plan).packs
        writer = Writer(plan, packs, self.node)
        with writer.locked():
            if packs:
                self._submit(plan, writer)
            else:
                tell_plan(plan)
        if self.given.wait or not (packs or plan.under_way):
            return self._ended(plan)
        return {run.name: plan.finished.get(run.name) for run in plan.runs}

    def _submit(self, plan: Plan, writer: Writer) -> None:
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        from sae_sweeps.launching.job import PackJob

        with _outside_of_a_job():
            executor = self._executor(plan)
            writer.begin()
            try:
                # The error has sbatch's lines too.
                with as_config_error(), redirect_stderr(io.StringIO()):
                    paths = freeze(plan, writer.packs)
                    jobs = executor.submit_array([PackJob(path) for path in paths])
            except Exception as error:
                writer.take_back()
                if not isinstance(error, FailedJobError | FailedSubmissionError):
                    raise  # no word of SLURM's
                said = [line.removeprefix("sbatch: error: ") for line in str(error).splitlines()]
                raise ConfigError(f"SLURM refused the jobs: {'; '.join(said)}") from error
        writer.submitted([job.job_id for job in jobs])
        tell_plan(plan)
        folder = status.shown(plan.folder)
        number = str(jobs[0].job_id).partition("_")[0]
        tasks = f", tasks 0 to {len(jobs) - 1}" if len(jobs) > 1 else ""
        say(f"Submitted: job {number}{tasks}. Logs: {folder}/packs/{plan.launch}-*.log")
        say(f"To follow: sae-sweeps status {folder}    (or wait, cancel, retry, report)")
        if self.given.gpus:  # a CPU's time would have to be tried
            with suppress(Exception):  # nothing that is only told may fail a launch
                ahead = outlook.of_plan(plan, self.divided(plan), self.estimate(plan))
                say(foretold.short(ahead))

    def _executor(self, plan: Plan) -> Any:
        """Make submitit's executor for this plan's jobs; raises ConfigError for a wrong option."""
        if not shutil.which("sbatch"):
            text = "hydra/launcher is slurm, but there is no sbatch here"
            raise ConfigError(f"{text}: call this on a machine of the cluster.")
        from submitit.slurm.slurm import SlurmExecutor

        try:
            # -P: no module is taken from the folder that the command is called in.
            python = f"{shlex.quote(sys.executable)} -P"
            place = plan.files.packs / "%j"
            executor = SlurmExecutor(place, max_num_timeout=REQUEUES, python=python)
            known = SlurmExecutor._valid_parameters()  # pyright: ignore[reportPrivateUsage]
            for name in self.given.extra or {}:
                if name in OURS or name not in known:
                    guess = did_you_mean(name, sorted(known.difference(OURS)))
                    raise ConfigError(f"hydra.launcher.extra.{name} is not possible.{guess}")
            executor.update_parameters(**self._parameters(plan.name))
        except (RuntimeError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {one_line(error)}") from error
        return executor

    def _parameters(self, name: str) -> dict[str, Any]:
        given = self.given
        same = ("partition", "account", "qos", "constraint", "signal_delay_s", "array_parallelism")
        wanted: dict[str, Any] = {key: getattr(given, key) for key in same}
        wanted |= {"job_name": name, "time": minutes(given.time), "cpus_per_task": given.cpus}
        wanted |= {"gpus_per_node": given.gpus or None, "setup": [*given.setup, _as_here()]}
        wanted |= given.extra or {}
        if given.memory is not None:
            more = wanted.get("additional_parameters") or {}
            wanted["additional_parameters"] = {"mem": given.memory} | more
        return {key: value for key, value in wanted.items() if value is not None}

    def _ended(self, plan: Plan) -> Mapping[str, Told]:
        """Wait for all runs, and tell what became of them."""
        from sae_sweeps.launching import monitor, progress

        runs = {run.name: run for run in plan.runs}
        tokens = sum(run.config.total_tokens for run in runs.values())
        try:
            with progress.make(self.given.progress, len(runs), tokens) as display:
                monitor.watch(plan.folder, display, set(runs), every_s=LOOK_EVERY_S)
        except KeyboardInterrupt:
            folder = status.shown(plan.folder)
            complain(f"interrupted, the jobs go on: sae-sweeps wait {folder}, or cancel {folder}")
            raise SystemExit(130) from None
        outcomes = results(plan)
        tell_end(plan, outcomes)
        return outcomes


def minutes(time: int | str) -> int:
    """Read a time limit as SLURM does, in whole minutes; raises ConfigError.

    Minutes, `minutes:seconds`, `hours:minutes:seconds`, `days-hours`, `days-hours:minutes` or
    `days-hours:minutes:seconds`.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", str(time))
    if found:
        days, *rest = found.groups()
        parts = [int(part) for part in rest if part is not None]
        if days is not None or len(parts) == 3:
            hours, mins, seconds = [*parts, 0, 0][:3]
        else:
            hours, (mins, seconds) = 0, [*parts, 0][:2]
        whole = (int(days or 0) * 24 + hours) * 60 + mins + -(-seconds // 60)
        if whole > 0:
            return whole
    text = f"hydra.launcher.time is {time!r}"
    raise ConfigError(f"{text}, expected minutes, at least 1, or days-hours:minutes:seconds.")


def _as_here() -> str:
    """Have a job find modules where this process does; its pack, a file, says nothing of that."""
    places = shlex.quote(os.pathsep.join(manifest.search_path()))
    return f"export PYTHONPATH={places}${{PYTHONPATH:+:$PYTHONPATH}}"


@contextmanager
def _outside_of_a_job() -> Generator[None, None, None]:
    """Hide the SLURM job that this command may run in: its limits would bind the new jobs."""
    kept = ("SLURM_CONF",)
    inside = "SLURM_JOB_ID" in os.environ
    words = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
    hidden = {k: v for k, v in os.environ.items() if k.startswith(words) and k not in kept}
    if inside:
        for key in hidden:
            del os.environ[key]
    try:
        yield
    finally:
        if inside:
            os.environ.update(hidden)
