"""What variants tell of a config by static methods, before their modules are imported."""

from collections.abc import Callable, Mapping
from typing import Any

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET
from sae_sweeps.config.source import own_static


def told(config: RunConfig, group: str, name: str) -> Any:
    """What a static method of a group's class tells of a config; None where it has none such."""
    function: Callable[[Mapping[str, Any]], Any] | None = own_static(
        config.nodes[group][TARGET], name
    )
    return function(config.tree) if function else None
