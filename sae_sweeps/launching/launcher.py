"""What our launchers share: from points to a plan, and from outcomes to what Hydra wants back."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config.check import check
from sae_sweeps.config.rules import out_of_range
from sae_sweeps.config.signature import build, signature
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.compose import ConfigLauncher, compose
from sae_sweeps.launching.objective import require_known
from sae_sweeps.launching.work import Outcome
from sae_sweeps.planning.asked import Asked, asked
from sae_sweeps.planning.estimate import Estimate, Roofline
from sae_sweeps.planning.gpus import GPUS, USUAL
from sae_sweeps.planning.outlook import Division
from sae_sweeps.record import manifest, status
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.record.inspection import inspect
from sae_sweeps.record.naming import sweep_name
from sae_sweeps.record.plan import Plan, Point, make_plan
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run

Told = Outcome | None
"""What became of a run, or None for one that was only submitted."""


class PlanLauncher(ConfigLauncher):
    """Plans what there is to do and has `carry_out` do it."""

    schema: ClassVar[str]
    """The dataclass of its options, `module.Class`; `objective` is an option of every launcher."""

    def __init__(self, **given: Any) -> None:
        """Take the options that the config states; raises ConfigError for a wrong one."""
        options = signature(self.schema)
        # Sweeps launched before an option existed are retried without it.
        born = {name: option.birth.value for name, option in options.items() if option.birth}
        plain = born | {name: _plain(value) for name, value in given.items()}
        self.checked = check("hydra.launcher", {**plain, "_target_": self.schema})
        for name, option in options.items():
            for complaint in out_of_range(f"hydra.launcher.{name}", self.checked[name], option):
                raise ConfigError(complaint)
        self.given: Any = build(self.checked)

    @property
    def node(self) -> dict[str, Any]:
        """What builds this launcher again: its class and its options."""
        kind = type(self)
        return self.checked | {"_target_": f"{kind.__module__}.{kind.__qualname__}"}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands to every launcher."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Serve sweepers other than ours, which hand over overrides and mostly want figures."""
        del initial_job_idx  # runs are named by content
        if not self.config.hydra.sweeper._target_.endswith(".BasicSweeper"):
            self.require_figures()
        setup_globals()
        return self.launch_configs(compose(self.hydra_context, self.config, job_overrides))

    def launch_configs(self, points: list[Point]) -> list[JobReturn]:
        """Do what is not done yet; one outcome per point, in order."""
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        plan, outcomes = self.launch_points(sweep_name(_root_=self.config), folder, points)
        return [self._job(outcomes.get(run.name), run) for run in plan.runs]

    def launch_points(
        self, name: str, folder: Path, points: list[Point]
    ) -> tuple[Plan, Mapping[str, Told]]:
        """Do what is not done yet of the points; outcomes by the run's name."""
        require_known(_names(self.given.objective), points[0].config.nodes["measure"])
        inspect(folder)
        try:
            launch = manifest.next_launch(folder)
            before = manifest.read(folder).points if launch > 1 else []
            plan = make_plan(name, folder, points, under_way(folder), launch, before)
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}.") from error
        if (wish := asked.get()) is not None:
            self._foretell(plan, wish)
            return plan, {}
        return plan, self.carry_out(plan)

    def _foretell(self, plan: Plan, wish: Asked) -> None:
        """Say what the launch would take, and do nothing of it."""
        from sae_sweeps.launching import foretold
        from sae_sweeps.planning import outlook

        division = self.divided(plan)
        named = wish.gpu or (None if division.packs else USUAL)  # nothing ahead takes no time
        estimate = Roofline(GPUS[named]) if named else self.estimate(plan)
        foretold.show(plan, outlook.of_plan(plan, division, estimate), wish.json)

    def require_figures(self) -> None:
        """Refuse, by ConfigError, options under which a sweeper would learn nothing."""
        if not self.given.objective:
            text = "hydra.launcher.objective is null: this sweeper needs a figure, such as fvu."
            raise ConfigError(text)

    def divided(self, plan: Plan) -> Division:
        """Divide the plan's runs into packs; here a pack for each pass, one after the other.

        Raises:
            ConfigError: there is no such device here.
        """
        return Division([*plan.packs, *plan.remeasured], 1)

    def estimate(self, plan: Plan) -> Estimate:
        """Tell how fast the devices are that packs would be trained on.

        Raises:
            ConfigError: nobody knows, as here; or a try of it fails.
        """
        del plan
        raise ConfigError("hydra/launcher: this one tells no times; `plan --gpu` does.")

    @abstractmethod
    def carry_out(self, plan: Plan) -> Mapping[str, Told]:
        """Train, or have trained, what the plan says; an outcome for each of its runs."""

    def _job(self, outcome: Told, run: Run) -> JobReturn:
        job = JobReturn(overrides=run.overrides, working_dir=str(run.folder), task_name=run.name)
        failed = isinstance(outcome, Exception)
        job.status = JobStatus.FAILED if failed else JobStatus.COMPLETED
        job.return_value = outcome.as_json() if isinstance(outcome, Result) else outcome
        if isinstance(outcome, Result) and self.given.objective:
            job.return_value = _figures(outcome.metrics, self.given.objective)
        return job


def _plain(value: Any) -> Any:
    """Resolve what Hydra hands over; what a manifest says is plain, and means no more than that."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def _figures(metrics: Mapping[str, float], objective: str | list[str]) -> float | list[float]:
    """Read one figure of a result, or several; raises ConfigError for one that it lacks."""
    names = _names(objective)
    for name in names:
        if name not in metrics:
            text = f"hydra.launcher.objective is {name!r}, which this target model has not"
            raise ConfigError(f"{text}: it has {', '.join(metrics)}.")
    return metrics[objective] if isinstance(objective, str) else [metrics[name] for name in names]


def _names(objective: str | list[str] | None) -> list[str]:
    return [objective] if isinstance(objective, str) else objective or []


def under_way(folder: Path) -> dict[str, str]:
    """Tell which runs SLURM jobs of earlier launches will still train, and the job of each.

    Raises:
        ConfigError: SLURM, which knows, cannot be asked.
    """
    if not SweepFolder(folder).manifest.exists():
        return {}
    found = status.read(folder)
    jobs = {run.name: run.job for run in found.runs if run.job is not None}
    if found.problem and any(run.job and run.state not in ("done", "failed") for run in found.runs):
        text = f"whether {folder.name}'s jobs still run cannot be told: {found.problem}"
        raise ConfigError(f"{text}. Launch where SLURM is, or give another name.")
    alive = ("pending", "running", "preempted")
    return {run.name: jobs[run.name] for run in found.runs if run.state in alive and run.job}
