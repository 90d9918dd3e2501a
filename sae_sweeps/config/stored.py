"""Checks what a sweep's files name before it is built: a folder may be somebody else's.

What a user types is the user's own. What a file of a folder says was chosen by whoever wrote it, so
it gets the command line's check once more, and names no code but the package's and what lies where
the user launches.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.config.check import check_tree
from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import NUMERICS, TARGET, build, signature
from sae_sweeps.config.source import is_a, source_of
from sae_sweeps.errors import ConfigError, one_line, visible

OURS = __name__.partition(".")[0]
LAUNCHER = f"{OURS}.launching.launcher.PlanLauncher"


def checked_again(config: RunConfig) -> dict[str, Any]:
    """Give a stored config's tree as the command line would, if that would take it.

    Raises:
        ConfigError: for a class that is not its group's or is not here, and for an option that is
            not of its type.
    """
    return check_tree({key: _plain(value) for key, value in config.tree.items()}, config.nodes)


@dataclass(frozen=True)
class Stored:
    """A folder whose manifest is to be launched from, and how far it is believed."""

    folder: Path
    """The sweep's; no module is taken from it."""
    elsewhere: tuple[str, ...] = ()
    """Where its author's modules were, for a complaint to name."""
    trusted: bool = False
    """Whether the user has said that the folder may name any code."""

    def check(self, config: RunConfig) -> dict[str, Any]:
        """Check a config again, and refuse modules that lie elsewhere; raises ConfigError."""
        nodes: dict[str, Any] = {**config.nodes}  # of which a file may say anything
        for name, node in nodes.items():
            if isinstance(node, dict) and isinstance(target := node.get(TARGET), str):
                self._require_known(f"{name}.{TARGET}", target)
        return checked_again(config)

    def launcher(self, node: Mapping[str, Any]) -> Any:
        """Build the launcher that a manifest names.

        Raises:
            ConfigError: for what is no launcher, for one whose module lies elsewhere, and for
                options that hold commands, unless the folder is trusted.
        """
        where, target = f"hydra.launcher.{TARGET}", node.get(TARGET)
        if not isinstance(target, str):
            raise ConfigError(f"{where} is {one_line(repr(target))}, expected the name of a class.")
        self._require_known(where, target)
        if not is_a(target, LAUNCHER):
            raise ConfigError(f"{where} is {target!r}, expected a subclass of PlanLauncher.")
        launcher = build(node)
        for name, option in signature(launcher.schema).items():
            value = node.get(name)
            if option.code and value and not self.trusted:
                text = f"hydra.launcher.{name} is {one_line(repr(value))}, which jobs would run"
                raise ConfigError(f"{text}: read it, and allow it by --trust.")
        return launcher

    def _require_known(self, where: str, target: str) -> None:
        """Refuse a class whose module is neither the package's nor found where the user is."""
        if self.trusted or target.startswith(f"{OURS}."):
            return
        module = target.rpartition(".")[0]
        source = source_of(module)
        if source is None:
            # Python's own folders would hide those of a user.
            there = [p for p in self.elsewhere if p not in sys.path and "/python3" not in p]
            place = f" (it was launched with modules of {', '.join(there)})" if there else ""
            text = f"{where} is {target!r}, and there is no module {module!r} where you launch"
            raise ConfigError(f"{visible(text + place)}: read it, and allow it by --trust.")
        if source.resolve().is_relative_to(self.folder.resolve()):
            text = f"{where} is {target!r}, whose module is in the sweep's own folder, {source}"
            raise ConfigError(f"{visible(text)}: read it, and allow it by --trust.")


def _plain(value: Any) -> Any:
    """Leave out what is no option."""
    if isinstance(value, dict):
        return {key: item for key, item in value.items() if key != NUMERICS}
    return value
