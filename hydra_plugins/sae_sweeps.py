"""Hydra takes plugin classes from this namespace only; the code is in sae_sweeps.launching."""

from typing import Any

from hydra.core.config_store import ConfigStore

from sae_sweeps.launching.local import PackLauncher
from sae_sweeps.launching.points import PointsSweeperBase


class LocalLauncher(PackLauncher):
    """hydra/launcher=local: trains here."""


class PointsSweeper(PointsSweeperBase):
    """hydra/sweeper=points: axes and paired points."""


def _offer(group: str, name: str, **node: Any) -> None:
    ConfigStore.instance().store(group=group, name=name, node=node, provider="sae_sweeps")


_offer("hydra/launcher", "local", _target_=f"{__name__}.LocalLauncher", progress="auto")
_offer("hydra/sweeper", "points", _target_=f"{__name__}.PointsSweeper", params=None, points=None)
