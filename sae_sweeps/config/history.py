"""What configs of earlier versions said, and how today's say it: the one place that knows.

A stored config is upgraded when it is read: what has moved since gets its present place, an option
that did not exist yet the value of its birth (see `marks.Birth`). Identities go the other way: the
canonical tree is the one that the first version would have written, plus those later options that
are not what they were born as; a later value may count as an earlier one (see `marks.Alias`). So an
option, a group or a section can be added, and every run that was ever trained is still found; and
what the defaults are plays no part.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.config.options import ROOT, SECTIONS
from sae_sweeps.config.signature import NUMERICS, TARGET, numerics, signature
from sae_sweeps.marks import Alias, Birth

MOVED = {
    "training.lr": "optimizer.lr",
    "training.beta1": "optimizer.beta1",
    "training.beta2": "optimizer.beta2",
    "training.warmup_tokens": "schedule.warmup_tokens",
    "training.decay_tokens": "schedule.decay_tokens",
}
"""Where options were before, and where they are now: in the group's class of birth."""

BIRTHS = {group.name: group.birth for group in GROUPS if group.birth is not None}
SHARE = re.compile(r"\$\{share:([\d.e+-]+)\}")

Config = dict[str, Any]


def upgrade(stored: Mapping[str, Any]) -> Config:
    """Return a stored config as today's code would have written it; today's stay as they are."""
    config = _copy(stored)
    for group, target in BIRTHS.items():
        config.setdefault(group, {TARGET: target})
    for old, new in MOVED.items():
        (section, option), (group, name) = old.split("."), new.split(".")
        if option in config.get(section, {}):
            config[group].setdefault(name, config[section].pop(option))
    for section in SECTIONS:
        config.setdefault(section, {})
    for node, marked in _nodes(config):
        for name, birth in marked.births.items():
            node.setdefault(name, _resolved(birth, config))
    return config


def acting(given: Mapping[str, Any], keep: Collection[str] = ()) -> Config:
    """Return what can change a run's weights, in today's terms, and what is to be kept besides.

    Args:
        given: a config of today's, checked, or not even resolved.
        keep: options to keep that change nothing, by name.
    """
    config = _copy(given)
    for node, marked in _nodes(config):
        for name in marked.idle.difference(keep):
            node.pop(name, None)
    for group in GROUPS:
        if not group.trains:
            config.pop(group.name, None)
    return config


def canonical(given: Mapping[str, Any], keep: Collection[str] = ()) -> Config:
    """Return what `acting` does, as a tree that no later version changes."""
    config = acting(given, keep)
    for node, marked in _nodes(config):
        for name, birth in marked.births.items():
            # Of a config that is not resolved yet, a share is told by its text.
            if name in node and node[name] in (birth.value, _resolved(birth, config)):
                del node[name]
        for name, alias in marked.aliases.items():
            if node.get(name) == alias.value:
                node[name] = alias.of
    _move_back(config)
    for group, target in BIRTHS.items():
        if config.get(group) == {TARGET: target}:
            del config[group]
    return {key: value for key, value in config.items() if key not in SECTIONS or value}


def _move_back(config: Config) -> None:
    for old, new in MOVED.items():
        (section, option), (group, name) = old.split("."), new.split(".")
        node, home = config.get(group), config.setdefault(section, {})
        if not isinstance(node, dict) or not isinstance(home, dict):
            continue  # a config that is yet to be checked
        if node.get(TARGET) == BIRTHS[group] and name in node:
            home[option] = node.pop(name)


def moved(word: str) -> str:
    """Write `key=value`, or a key alone, with the option's present place."""
    key, equals, value = word.partition("=")
    bare = key.lstrip("+~")
    return f"{key.removesuffix(bare)}{MOVED.get(bare, bare)}{equals}{value}"


def outdated(config: Mapping[str, Any]) -> str:
    """Say which algorithm of a stored config has been replaced since; empty if none has."""
    for key, node in config.items():
        target = node.get(TARGET) if isinstance(node, dict) else None
        with suppress(LookupError):
            now, then = (numerics(target), node.get(NUMERICS, 1)) if target else (1, 1)
            if now != then:
                return f"{key}: {target} has numerics {now} now, and the run has {then}"
    return ""


def walk(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a tree's leaves by dotted path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from walk(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _copy(config: Mapping[str, Any]) -> Config:
    """Copy the tree as deep as it is changed here: options of nodes come and go, whole."""
    return {key: dict(node) if isinstance(node, dict) else node for key, node in config.items()}


def _nodes(config: Config) -> Iterator[tuple[Config, "Marked"]]:
    """Walk the config itself, its sections and the nodes of classes, each with its marks."""
    yield config, _marked(ROOT)
    for key, node in config.items():
        if isinstance(node, dict):
            target = SECTIONS.get(key) or node.get(TARGET)
            yield node, _marked(target) if isinstance(target, str) else NOTHING


@dataclass(frozen=True)
class Marked:
    """A class's options that are marked, by name."""

    births: Mapping[str, Birth]
    aliases: Mapping[str, Alias]
    idle: frozenset[str]


NOTHING = Marked({}, {}, frozenset())


@cache
def _marked(target: str) -> Marked:
    """Read a class's marks; none of one that is not here, as in a folder of somebody else's."""
    try:
        options = signature(target)
    except LookupError:
        return NOTHING
    births = {name: option.birth for name, option in options.items() if option.birth}
    aliases = {name: option.alias for name, option in options.items() if option.alias}
    return Marked(
        births, aliases, frozenset(name for name, option in options.items() if option.idle)
    )


def _resolved(birth: Birth, config: Config) -> Any:
    """Return a birth's value; a share of the tokens as their number, if that can be told."""
    share = SHARE.fullmatch(birth.value) if isinstance(birth.value, str) else None
    training = config.get("training")
    tokens = training.get("tokens") if isinstance(training, dict) else None
    if share is not None and isinstance(tokens, int | float):
        return round(float(share[1]) * tokens)
    return birth.value
