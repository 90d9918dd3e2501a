"""Which runs are the same run, share a stream, a pass, or can be compared; no torch."""

from collections.abc import Mapping
from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.config.history import canonical
from sae_sweeps.config.options import RunConfig
from sae_sweeps.system.files import digest

STREAMING = tuple(group.name for group in GROUPS if group.streams)
"""Groups that rule activations."""
CHOOSING = ("special_tokens", "skip_first", "max_norm")
"""Options of the stream that say on which tokens runs are measured."""


def identity(config: RunConfig) -> str:
    """Hash what can change a run's weights."""
    return digest(canonical(config.tree))


def stream_identity(config: RunConfig) -> str:
    """Hash what the activation batches are a function of: runs that agree in it share a stream."""
    return _streaming(config.tree)


def pass_identity(config: RunConfig) -> str:
    """Hash what one pass over a target model is a function of: runs that agree can share a pack.

    Activations at several hooks come from one pass.
    """
    tree = config.tree
    node = {key: value for key, value in tree["target_model"].items() if key != "hook"}
    return _streaming(tree | {"target_model": node})


def source(config: RunConfig) -> str:
    """Hash what is reconstructed: figures of runs that differ in it cannot be compared."""
    acting = canonical(config.tree)
    tokens = {name: acting["stream"].get(name) for name in CHOOSING}
    return digest([tokens, *(acting.get(name) for name in STREAMING)])


def _streaming(tree: Mapping[str, Any]) -> str:
    acting = canonical(tree)
    return digest({key: acting[key] for key in ("stream", *STREAMING)})
