"""Hydra takes plugin classes from this namespace only; the code is in sae_sweeps.launching."""

from sae_sweeps.launching.local import Local
from sae_sweeps.launching.slurm import Slurm
from sae_sweeps.launching.sweeper import PointsSweeperBase


class LocalLauncher(Local):
    """hydra/launcher=local: trains here."""


class SlurmLauncher(Slurm):
    """hydra/launcher=slurm: submits jobs."""


class PointsSweeper(PointsSweeperBase):
    """hydra/sweeper=points: axes and paired points."""
