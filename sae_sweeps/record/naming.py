"""What runs and sweeps are called, and so where their folders are."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config.check import checked
from sae_sweeps.config.history import canonical
from sae_sweeps.config.options import RunConfig
from sae_sweeps.record.identity import identity
from sae_sweeps.record.run import label
from sae_sweeps.system.files import digest

KEPT = ("streaming",)
"""What changes nothing but has always been a part of derived names."""


def run_name(config: RunConfig, choices: Mapping[str, str]) -> str:
    """Name a run for people and for good: `token-choice-aux-k-k16-s0-1a2b3c4d`."""
    words = f"{label(dict(choices))} k{config.k:g} s{config.seed}"
    slug = re.sub(r"[^a-z0-9.]+", "-", words.lower().replace("×", "x")).strip("-")
    return f"{slug}-{identity(config)[:8]}"


def default_name(cfg: DictConfig, fixed: Collection[str] = ()) -> str:
    """Derive a sweep's name from its base config, so that a repeated command resumes.

    The base need not be a valid run (a sweep's axes may make it one), hence nothing is resolved.

    Args:
        fixed: overrides that hold for every point but are not in `cfg`.
    """
    base = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(base, dict)
    texts = {str(key): value for key, value in base.items() if key != "hydra"}
    kept = {key: _loose(value) for key, value in canonical(texts, keep=KEPT).items()}
    model = OmegaConf.select(cfg, "hydra.runtime.choices.target_model") or "sweep"
    return f"{str(model).replace('/', '-')}-{digest([kept, sorted(fixed)])[:6]}"


def _loose(value: Any) -> Any:
    """Normalise without a schema: `8` and `8.0` are one value."""
    if isinstance(value, dict):
        return {str(key): _loose(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_loose(item) for item in value]
    return str(float(value)) if type(value) in (int, float) else repr(value)


def run_id(*, _root_: DictConfig) -> str:
    """`${run_id:}`: the run's folder, for launchers that are not ours."""
    choices = OmegaConf.select(_root_, "hydra.runtime.choices")
    return run_name(RunConfig.of(checked(_root_)), choices)


def sweep_name(*, _root_: DictConfig) -> str:
    """`${sweep_name:}`: the given name, or the derived one."""
    return _root_.name or default_name(_root_)


for _resolver in (run_id, sweep_name):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True, use_cache=False)
