"""What one run of a sweep is; no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.config.options import total_tokens
from sae_sweeps.system.files import digest

METRICS_VERSION = 3
"""Raised whenever a figure of `metrics.py` changes; runs measured before are measured anew."""


FIGURES = (
    *("l0", "l0_p5", "l0_median", "l0_p95", "l0_max", "fvu", "mse", "cosine", "dead_frac"),
    *("underused_frac", "below_1e-4", "below_1e-5", "below_1e-6", "gamma", "gamma_centred"),
    *("ce", "delta_ce", "kl", "ce_clean", "ce_zero", "ce_mean", "ce_recovered"),
    *("ce_recovered_mean", "true_l0", "true_matched_cos", "true_max_cos", "true_recovered_frac"),
)
"""What `result.json` may hold as `metrics`: cross-entropies where there is a model, true figures
where there is a known dictionary."""


NOT_IDENTITY = frozenset(
    {
        "name",
        "device",
        "threads",
        "engine",
        "checkpoint_minutes",
        "force",
        "tracking",
        "evaluation",
        "k",
    }
)
"""What cannot change a run's weights; the dial `k` acts only through the options it sets."""


IDLE = {"data": frozenset({"streaming"})}
"""Options of a section that change how rows come here, not which."""
STREAM_KEYS = ("target_model", "data", "stream")
"""What rules activation batches."""


def identity(config: Mapping[str, Any]) -> str:
    """Hash what can change a run's weights, of a checked config."""
    return digest({key: _acting(config, key) for key in config if key not in NOT_IDENTITY})


def _acting(config: Mapping[str, Any], key: str) -> Any:
    """A section or option, less what rules only how something is done."""
    idle = IDLE.get(key, frozenset[str]())
    value = config[key]
    return {k: v for k, v in value.items() if k not in idle} if idle else value


def stream_identity(config: Mapping[str, Any]) -> str:
    """Hash what the activation batches are a function of: runs that agree in it share a stream."""
    return digest({key: _acting(config, key) for key in STREAM_KEYS})


def pass_identity(config: Mapping[str, Any]) -> str:
    """Hash what one pass over a target model is a function of: runs that agree can share a pack.

    Activations at several hooks come from one pass.
    """
    node = {key: value for key, value in config["target_model"].items() if key != "hook"}
    return stream_identity({**config, "target_model": node})


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
    extras = (choices.get(group, "none") for group in ("aux_loss", "resampling", "fine_tune"))
    return " + ".join([name, *(extra for extra in extras if extra != "none")])
