"""What one run of a sweep is; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.config.history import canonical
from sae_sweeps.config.options import total_tokens
from sae_sweeps.system.files import digest

RESULT_VERSION = 2
"""Of `result.json`; version 1 has the config of the first version (see `config.history`)."""
METRICS_VERSION = 3
"""Raised whenever a figure of `metrics.py` changes; runs measured before are measured anew.

A figure that comes raises nothing: runs measured before lack it, and are shown without.
"""

STREAM_KEYS = ("stream", *(group.name for group in GROUPS if group.streams))
"""What rules activation batches."""


def identity(config: Mapping[str, Any]) -> str:
    """Hash what can change a run's weights, of a checked config."""
    return digest(canonical(config))


def stream_identity(config: Mapping[str, Any]) -> str:
    """Hash what the activation batches are a function of: runs that agree in it share a stream."""
    acting = canonical(config)
    return digest({key: acting[key] for key in STREAM_KEYS})


def pass_identity(config: Mapping[str, Any]) -> str:
    """Hash what one pass over a target model is a function of: runs that agree can share a pack.

    Activations at several hooks come from one pass.
    """
    node = {key: value for key, value in config["target_model"].items() if key != "hook"}
    return stream_identity({**config, "target_model": node})


def source(config: Mapping[str, Any]) -> str:
    """Hash what is reconstructed: figures of runs that differ in it cannot be compared."""
    acting = canonical(config)
    return digest([acting.get(group.name) for group in GROUPS if group.streams])


@dataclass(frozen=True)
class Run:
    """One SAE to train with one resolved config."""

    name: str
    """`<slug>-<hash8>`: the folder's name and the basis of the tracker's id."""
    sweep: str
    """The sweep's name, which is also the tracker's group."""
    folder: Path
    """`outputs/<sweep>/runs/<name>`, absolute."""
    config: dict[str, Any]
    """The checked, normalised config, plain Python values."""
    choices: dict[str, str]
    """The option file chosen per group: `{"architecture": "relu", ...}`."""
    overrides: list[str]
    """What the user's command changed, in Hydra's grammar."""

    @property
    def total_tokens(self) -> int:
        """How many tokens it trains on, in whole batches."""
        return total_tokens(self.config)

    @property
    def saved_tokens(self) -> int:
        """How many tokens its last checkpoint has seen; 0 without one."""
        saved = sorted((self.folder / "checkpoint").glob("step-*.safetensors"))
        return int(saved[-1].stem.removeprefix("step-")) if saved else 0

    @property
    def label(self) -> str:
        """The method in tables and plots, from the option files that are really in force."""
        return label(self.choices)


def label(choices: dict[str, str]) -> str:
    """Name a method by its groups: `relu`, `token_choice + aux_k`, `gated × mutual_choice`."""
    architecture, allocator = choices["architecture"], choices["allocator"]
    if allocator == "none":
        name = architecture
    elif architecture == "relu":
        name = allocator
    else:
        name = f"{architecture} × {allocator}"
    labelled = [group for group in GROUPS if group.labelled]
    extras = [choices.get(g.name, g.usual) for g in labelled]
    unusual = [extra for extra, g in zip(extras, labelled, strict=True) if extra != g.usual]
    return " + ".join([name, *map(str, unusual)])
