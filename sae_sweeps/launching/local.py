"""Trains a sweep's packs here, one after the other."""

import re
import traceback
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from sae_sweeps import files, sweep
from sae_sweeps.build import build
from sae_sweeps.config import sweep_name
from sae_sweeps.launching.compose import ConfigLauncher, compose
from sae_sweeps.launching.errors import last_line
from sae_sweeps.launching.summary import say, tell_failures, tell_plan
from sae_sweeps.run import ConfigError, Run
from sae_sweeps.sweep import Plan, Point

if TYPE_CHECKING:
    from sae_sweeps.launching.progress import Display

PROGRESS = ("auto", "off")

Outcome = dict[str, Any] | Exception


class PackLauncher(ConfigLauncher):
    """Groups points into packs by stream; each pack trains from one pass over the activations."""

    def __init__(self, progress: str = "auto") -> None:
        """Take `progress`: `auto` shows how far the sweep is, `off` does not."""
        if progress not in PROGRESS:
            text = f"hydra.launcher.progress is {progress!r}, expected 'auto' or 'off'."
            raise ConfigError(text)
        self.progress = progress

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands to every launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Serve sweepers other than ours, which hand over overrides."""
        del initial_job_idx  # runs are named by content
        setup_globals()
        return self.launch_configs(compose(self.hydra_context, self.config, job_overrides))

    def launch_configs(self, points: list[Point]) -> list[JobReturn]:
        """Train what is not finished, then draw the report; one outcome per point, in order."""
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        try:
            plan = sweep.plan(sweep_name(_root_=self.config), folder, points)
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}.") from error
        outcomes = train(plan, self.progress)
        return [_job(outcomes[run.name], run) for run in plan.runs]


def _job(outcome: Outcome, run: Run) -> JobReturn:
    job = JobReturn(overrides=run.overrides, working_dir=str(run.folder), task_name=run.name)
    failed = isinstance(outcome, Exception)
    job.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
    job.return_value = outcome
    return job


def train(plan: Plan, progress: str) -> dict[str, Outcome]:
    """Train the packs, tell what failed, draw the report; outcomes by the run's name."""
    outcomes: dict[str, Outcome] = {**plan.finished}
    writer = Writer(plan)
    if plan.packs or plan.remeasured:
        reach_device(plan.points[0].config["device"])
    else:
        tell_plan(plan)
    with writer.locked():
        tracking = build(plan.points[0].config["tracking"])
        with _display(plan, progress) as display, messages(display):
            for pack in plan.packs:
                results = _train_pack(pack, tracking, display, writer)
                outcomes |= dict(zip((run.name for run in pack), results, strict=True))
            for group in plan.remeasured:
                results = _remeasure(group, tracking, display, writer)
                outcomes |= dict(zip((run.name for run in group), results, strict=True))
        failures = [(name, o) for name, o in outcomes.items() if isinstance(o, Exception)]
        tell_failures(failures)
        if len(failures) < len(outcomes):
            from sae_sweeps.pareto.report import report

            report(plan.folder, tracking)
        tracking.close()
    say(f"{plan.name}: {len(outcomes) - len(failures)} of {len(outcomes)} runs are finished")
    return outcomes


def messages(display: "Display") -> AbstractContextManager[None]:
    """Show what the package logs beside the display."""
    from sae_sweeps.launching.progress import Messages

    return Messages(display)


def _display(plan: Plan, progress: str) -> "Display":
    from sae_sweeps.launching.progress import make

    ahead = [run for pack in plan.packs for run in pack]
    phases = [run.config[phase] for run in ahead for phase in ("training", "fine_tune")]
    tokens = sum(phase.get("tokens", 0) for phase in phases)
    return make(progress if ahead or plan.remeasured else "off", len(ahead), tokens)


class Writer:
    """Writes a sweep's files, but only once a pack's model and data are known to load."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.path = plan.folder / ".lock"
        self.lock = None
        self.begun = False

    @contextmanager
    def locked(self) -> Generator[None, None, None]:
        """Hold the sweep while the block runs; a folder that is not there yet is held later."""
        try:
            if self.path.exists() or not self.plan.packs:
                self._acquire()
            yield
        finally:
            if self.lock is not None:
                self.lock.release()

    def ready(self, pack: list[Run]) -> None:
        """Write what must lie on disk before training: the manifest and the runs' configs."""
        try:
            if not self.begun:
                self._acquire()
                sweep.write_manifest(self.plan)
                tell_plan(self.plan)
                self.begun = True
            for run in pack:
                sweep.write_run_files(run)
        except OSError as error:
            raise ConfigError(f"cannot write {error.filename}: {error.strerror}.") from error

    def _acquire(self) -> None:
        from filelock import FileLock, Timeout

        if self.lock is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                text = f"{self.plan.folder} is in use by another sae-sweeps"
                raise ConfigError(f"{text}: wait for it, or give another name.") from None
            self.lock = lock


def _train_pack(
    pack: list[Run], tracking: Any, display: "Display", writer: Writer
) -> Sequence[Outcome]:
    """Train one pack; only the first may still refuse the whole launch, before it wrote."""
    from sae_sweeps.training.pack import train_pack

    display.names = [f"{r.label}, k {r.config['k']:g}, seed {r.config['seed']}" for r in pack]
    try:
        return train_pack(pack, tracking, display, on_ready=lambda: writer.ready(pack))
    except Exception as error:
        if not writer.begun:
            _refuse_too_large(error)
            raise
        return [_record(run, error) for run in pack]


def reach_device(name: str) -> None:
    """Refuse a device that this machine does not have."""
    import torch

    try:
        torch.empty(1, device=None if name == "auto" else name)
    except Exception as error:  # torch has a type of its own for each kind of device
        why = str(error).splitlines()[0]
        raise ConfigError(f"device is {name!r}, which cannot be had here: {why}") from error


def _refuse_too_large(error: Exception) -> None:
    """Word the lack of memory for a run's first tensors, whose sizes the config gives."""
    tried = re.search(r"(?i)(tried|unable) to allocate ([\d.]+ \w+)", str(error))
    if isinstance(error, MemoryError) or tried:
        size = f" {tried[2]} more" if tried else ""
        text = f"the first runs do not fit into memory, which cannot give{size or ' enough'}"
        raise ConfigError(f"{text}: d_sae, a chunk or the target model is too large.") from error


def _remeasure(
    group: list[Run], tracking: Any, display: "Display", writer: Writer
) -> Sequence[Outcome]:
    """Measure finished runs anew; what fails keeps the result it has."""
    from sae_sweeps.training.remeasure import remeasure_pack

    try:
        return remeasure_pack(group, tracking, display, on_ready=lambda: writer.ready(group))
    except Exception as error:
        if not writer.begun:
            _refuse_too_large(error)
            raise
        return [error for _ in group]


def _record(run: Run, error: Exception) -> Exception:
    """Leave a trace of a pack that broke as a whole; the other packs go on."""
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / "run.log").open("a", encoding="utf-8") as log:
        log.writelines(traceback.format_exception(error))
    files.write_json(run.folder / "failed.json", {"error": last_line(error)})
    return error


def train_alone(config: dict[str, Any], choices: dict[str, str]) -> None:
    """Train one run where a stock launcher put it; raises the run's own exception."""
    from sae_sweeps.launching.progress import Quiet
    from sae_sweeps.training.pack import train_pack

    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    run = Run(
        name=folder.name,
        sweep=config["name"] or folder.parent.parent.name,
        folder=folder,
        config=config,
        choices=choices,
        overrides=[str(override) for override in hydra.overrides.task],
    )
    if sweep.finished_result(folder, sweep.identity(config)) is not None:
        return
    tracking = build(config["tracking"])
    display = Quiet(1, config["training"]["tokens"])
    [outcome] = train_pack([run], tracking, display, on_ready=lambda: sweep.write_run_files(run))
    tracking.close()
    if isinstance(outcome, Exception):
        raise outcome
