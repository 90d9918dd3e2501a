"""From overrides to checked points; every launcher and sweeper gets its points here."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config.check import checked
from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.rules import obey
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.errors import is_users, line
from sae_sweeps.record.plan import Point

SHIPPED = ("main", "hydra", "schema")
"""Providers of config files that are not the user's own."""


class ConfigLauncher(Launcher):
    """A launcher that takes points already composed and checked."""

    @abstractmethod
    def launch_configs(self, points: list[Point]) -> list[JobReturn]:
        """Run the points and return one outcome each, in order."""


def compose(
    context: HydraContext, master: DictConfig, batch: Sequence[Sequence[str]]
) -> list[Point]:
    """Compose, check and rule every point; raises ConfigError that names the point."""
    refuse_shadows(master)
    points: list[Point] = []
    for overrides in batch:
        try:
            points.append(_point(context, master, list(overrides)))
        except Exception as error:
            if not is_users(error):
                raise
            raise ConfigError(line(error) + _where(overrides, batch)) from error
    return points


def _point(context: HydraContext, master: DictConfig, overrides: list[str]) -> Point:
    cfg = context.config_loader.load_sweep_config(master, overrides)
    config = checked(cfg)
    obey(config)
    return Point(overrides, RunConfig.of(config), choices_of(cfg.hydra))


def choices_of(hydra: DictConfig) -> dict[str, str]:
    """Read which option file stands behind each group, less Hydra's own groups."""
    chosen = OmegaConf.to_container(hydra.runtime.choices)
    assert isinstance(chosen, dict)
    return {str(g): str(o) for g, o in chosen.items() if not str(g).startswith("hydra/")}


def _where(overrides: Sequence[str], batch: Sequence[Sequence[str]]) -> str:
    """Name a point of several by what sets it apart."""
    shared = set(batch[0]).intersection(*batch)
    apart = [override for override in overrides if override not in shared]
    return f" (in: {' '.join(apart)})" if apart else ""


def refuse_shadows(master: DictConfig) -> None:
    """Refuse a user's file with a shipped file's name: Hydra would ignore it silently."""
    sources = master.hydra.runtime.config_sources
    shipped = {
        path for source in sources if source.provider == "main" for path in _files(source.path)
    }
    for source in sources:
        if source.provider in SHIPPED or source.schema != "file":
            continue
        # Looked up one by one: a user's folder may hold much else.
        for path in sorted(path for path in shipped if (Path(source.path) / path).is_file()):
            text = f"{Path(source.path) / path} has the name of a shipped file, which would win"
            raise ConfigError(f"{text}: rename it.")


def _files(folder: str) -> set[str]:
    root = Path(folder)
    return {path.relative_to(root).as_posix() for path in root.rglob("*.yaml")}
