"""Where in a Hugging Face model TransformerLens' hooks lie, so that it can run as it is."""

from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["in", "out"]
SIDES: dict[str, Side] = {"hook_in": "in", "hook_out": "out"}


@dataclass(frozen=True)
class Site:
    """What a module of a Hugging Face model takes, or what it gives."""

    module: str
    """dotted path, as `transformer.h.1.mlp`"""
    side: Side


def site(components: dict[str, Any], hook: str) -> Site | None:
    """Find a hook by the component mapping of TransformerLens' adapter for an architecture.

    None for what lies inside a module, as attention patterns do, and for names it does not know.
    """
    return _within(components, hook.split("."), [])


def _within(components: dict[str, Any], words: list[str], path: list[str]) -> Site | None:
    component, rest = components.get(words[0]), words[1:]
    if component is None or not rest:
        return None
    if component.name is not None:
        path = [*path, component.name]
    if getattr(component, "is_list_item", False):
        if not rest[0].isdecimal():
            return None
        path, rest = [*path, rest[0]], rest[1:]
    return _of(component, rest, path)


def _of(component: Any, words: list[str], path: list[str]) -> Site | None:
    """Follow the rest of a name from a component on: its own hooks, aliases and parts."""
    if not words:
        return None
    if len(words) == 1 and words[0] in SIDES:
        return Site(".".join(path), SIDES[words[0]]) if component.name is not None else None
    meant = component.hook_aliases.get(words[0]) if len(words) == 1 else None
    if meant is None:
        return _within(component.submodules, words, path)
    return _of(component, meant.split("."), path)
