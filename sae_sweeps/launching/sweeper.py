"""The sweeper: axes, paired points, and every point checked before the first one starts."""

from collections.abc import Sequence
from itertools import islice, product
from math import prod
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.history import moved
from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.launching.compose import ConfigLauncher, compose
from sae_sweeps.launching.errors import is_users, line
from sae_sweeps.launching.summary import tell_failures, tell_notes
from sae_sweeps.planning.asked import wish
from sae_sweeps.record.naming import default_name

OF_THE_SWEEP = ("name", "sweep")
MOST_POINTS = 10_000
"""Points of a sweep: composing as many takes a quarter of an hour."""


def literal(value: Any) -> str:
    """Write a YAML value in Hydra's override grammar."""
    return Override._get_value_element_as_str(_quoted(value))  # pyright: ignore[reportPrivateUsage]


def _quoted(value: Any) -> Any:
    """Quote every text, so that none is read as an axis, a number or a function."""
    if isinstance(value, str):
        return QuotedString(value, Quote.single)
    if isinstance(value, list):
        return [_quoted(item) for item in value]
    if isinstance(value, dict):
        return {key: _quoted(item) for key, item in value.items()}
    return value


class PointsSweeperBase(Sweeper):
    """Expands `params` x `points` x the command line; the later of two values for a key wins."""

    def __init__(self, params: Any = None, points: Any = None) -> None:
        """Take `params`, an axis per key, and `points`, mappings of paired values."""
        self.axes = _plain(params, {})
        self.pairs = _plain(points, []) or [{}]
        if not isinstance(self.axes, dict):
            raise ConfigError("hydra.sweeper.params must be a mapping: {k: '4,8'}.")
        is_list = isinstance(self.pairs, list)
        if not is_list or not all(isinstance(pair, dict) for pair in self.pairs):
            raise ConfigError("hydra.sweeper.points must be a list of mappings: [{k: 4}, {k: 8}].")

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take what Hydra hands to every sweeper."""
        self.context, self.master = hydra_context, config
        self.jobs: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def expand(self, arguments: list[str]) -> list[list[str]]:
        """Return the overrides of every point, without repetition."""
        typed = self._parse(arguments)
        _refuse_repeated(typed)
        axes = self._parse([moved(f"{key}={value}") for key, value in self.axes.items()])
        batch: list[list[str]] = []
        for pair in self.pairs:
            paired = self._parse([moved(f"{key}={literal(value)}") for key, value in pair.items()])
            for override in [*axes, *paired]:
                _refuse_in_file(override)
            batch += _crossed([*axes, *paired, *typed])
        if not batch:
            raise ConfigError("an axis has no values, so there is nothing to train.")
        return [list(point) for point in dict.fromkeys(map(tuple, batch))]

    def sweep(self, arguments: list[str]) -> Any:
        """Check every point, launch them, and exit with 2 if some failed."""
        batch = self.expand(arguments)
        self._settle_name(arguments)
        batch = [self._named(point) for point in batch]
        points = compose(self.context, self.master, batch)
        if isinstance(self.jobs, ConfigLauncher):
            returns = self.jobs.launch_configs(points)
        else:
            returns = self._launch_elsewhere(batch)
        if any(job.status is not JobStatus.COMPLETED for job in returns):
            raise SystemExit(2)
        return [returns]

    def _launch_elsewhere(self, batch: list[list[str]]) -> Sequence[JobReturn]:
        """Let a stock launcher run the points, and draw the report that ours draws itself."""
        if wish() is not None:
            raise ConfigError("hydra/launcher: only of local and slurm there is a plan.")
        tell_notes()
        try:
            returns = self.jobs.launch(batch, initial_job_idx=0)
        except Exception as error:
            if is_users(error):
                raise
            # A job that died hard raises here, when others may well have finished.
            tell_failures([(type(self.jobs).__name__, error)])
            raise SystemExit(2) from None
        from sae_sweeps.pareto.report import report

        failed = [job for job in returns if job.status is not JobStatus.COMPLETED]
        tell_failures([(" ".join(job.overrides or []), _error(job)) for job in failed])
        if len(failed) < len(returns):
            report(Path(str(self.master.hydra.sweep.dir)).absolute())
        return returns

    def _parse(self, lines: list[str]) -> list[Override]:
        loader = self.context.config_loader
        return OverridesParser.create(config_loader=loader).parse_overrides(lines)

    def _settle_name(self, arguments: list[str]) -> None:
        """Derive the name once: composed point by point, each would derive another."""
        try:
            given = self.master.get("name")
        except OmegaConfBaseException as error:
            raise ConfigError(f"name: {line(error)}") from error
        if given is None:
            fixed = [text for o in self._parse(arguments) for text in _fixed(o)]
            with read_write(self.master), open_dict(self.master):
                self.master.name = default_name(self.master, fixed)

    def _named(self, point: list[str]) -> list[str]:
        others = [override for override in point if not override.startswith("name=")]
        return [*others, f"name={literal(self.master.name)}"]


def _crossed(overrides: list[Override]) -> list[list[str]]:
    """Take every combination of the axes; of several overrides of a key the last one counts."""
    axes: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        axes[key] = [f"{key}={value}" for value in _values(override)]
    count = prod(len(values) for values in axes.values())
    if count > MOST_POINTS:
        raise ConfigError(f"the axes have {count} combinations, expected at most {MOST_POINTS}.")
    return [list(point) for point in product(*axes.values())]


def _values(override: Override) -> list[str]:
    """Write an override's values in override grammar; a plain value is an axis of one."""
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    if not override.is_discrete_sweep():
        raise ConfigError(f"{override.input_line} has no single values; give a list or a range.")
    try:
        _refuse_endless(override)
        return list(override.sweep_string_iterator())
    except (ArithmeticError, HydraException, ValueError) as error:
        text = f"{one_line(repr(override.input_line))}: {one_line(error)}"
        raise ConfigError(text) from error


def _refuse_endless(override: Override) -> None:
    """Refuse a range of billions, which would not fit into memory."""
    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        values = islice(sweep.range(), MOST_POINTS + 1)
        if sum(1 for _ in values) > MOST_POINTS:
            raise ValueError(f"more than {MOST_POINTS} values, the most points of a sweep.")


def _error(job: JobReturn) -> BaseException | None:
    """Get why a job failed, which Hydra raises when asked for the value."""
    try:
        _ = job.return_value
    except Exception as error:
        return error
    return None


def _plain(node: Any, default: Any) -> Any:
    if isinstance(node, DictConfig | ListConfig):
        return OmegaConf.to_container(node, resolve=False)
    return default if node is None else node


def _fixed(override: Override) -> list[str]:
    """Give an axis of one value, which the base config does not hold (see `app.loosened`)."""
    if not override.is_sweep_override():
        return []
    values = _values(override)
    return [f"{override.key_or_group}={values[0]}"] if len(values) == 1 else []


def _refuse_repeated(typed: list[Override]) -> None:
    seen: dict[str, Override] = {}
    for override in typed:
        key = override.get_key_element().lstrip("+")
        if override.is_delete():
            text = f"{override.input_line}: options cannot be taken out; give another value."
            raise ConfigError(text)
        if key in seen:
            both = f"{seen[key].input_line} and {override.input_line}"
            raise ConfigError(f"{key} is given twice: {both}.")
        if key in OF_THE_SWEEP and override.is_sweep_override():
            raise ConfigError(f"{override.input_line}: a sweep has one {key}; it is no axis.")
        seen[key] = override


def _refuse_in_file(override: Override) -> None:
    """Refuse what a sweep file's axes and points cannot set."""
    key = override.get_key_element().lstrip("+~")
    if key in OF_THE_SWEEP or key.startswith(("hydra.", "hydra/")):
        text = f"{override.input_line}: {key} is the same for a whole sweep"
        raise ConfigError(f"{text}; it cannot stand in hydra.sweeper.params or points.")
