"""The figures that a sweeper may ask for."""

from collections.abc import Iterable, Mapping
from pkgutil import resolve_name
from typing import Any

from sae_sweeps.config.signature import TARGET
from sae_sweeps.errors import ConfigError, did_you_mean
from sae_sweeps.measures import FINAL


def require_known(names: Iterable[str], measure: Mapping[str, Any]) -> None:
    """Refuse, by ConfigError, figures that no run has by itself nor by the node `measure`.

    The node's class is imported only where a name is none of ours.
    """
    foreign = [name for name in names if name not in FINAL]
    if not foreign:
        return
    known = [*FINAL, *(own.name for own in resolve_name(measure[TARGET]).measures)]
    for name in foreign:
        if name not in known:
            text = f"hydra.launcher.objective is {name!r}, expected of {', '.join(known)}."
            raise ConfigError(text + did_you_mean(name, known))
