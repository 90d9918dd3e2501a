"""Weights & Biases: the tracker, its logs on disk, and their upload."""

from sae_sweeps.tracking.wandb.tracker import Wandb

__all__ = ["Wandb"]
