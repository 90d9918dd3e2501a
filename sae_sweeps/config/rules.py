"""Rules between options, on the checked dict, before anything starts; no torch.

A rule yields complaints, one line each: dotted path, value, what is allowed. Bounds stand beside
the options themselves (see `marks`). Here is what concerns any config; what concerns a single
variant is in its class, as a static method `rules` (see `source.own_rules`).
"""

import re
from collections.abc import Callable, Iterator
from typing import Any

from sae_sweeps.config.groups import NAMES
from sae_sweeps.config.options import ROOT, SECTIONS
from sae_sweeps.config.signature import TARGET, Option, signature
from sae_sweeps.config.source import own_rules
from sae_sweeps.errors import ConfigError

Config = dict[str, Any]
Rule = Callable[[Config], Iterator[str]]


NODES = (*SECTIONS, *NAMES)


def obey(config: Config) -> None:
    """Raise ConfigError with the first complaint of any rule."""
    for rule in RULES:
        for complaint in rule(config):
            raise ConfigError(complaint)


def options(config: Config) -> Iterator[tuple[str, Any, Option]]:
    """Walk through the options of our sections and groups, as dotted path, value and annotation.

    Options of groups come last: their defaults may be shares of the others, which are to blame.
    """
    root = signature(ROOT)
    yield from ((key, config[key], option) for key, option in root.items() if key not in SECTIONS)
    for name in NODES:
        node = config[name]
        known = signature(SECTIONS.get(name) or node[TARGET])
        yield from ((f"{name}.{key}", node[key], option) for key, option in known.items())


def _number(value: object) -> bool:
    return type(value) in (int, float)


def names_are_legal(config: Config) -> Iterator[str]:
    """The name is a folder's and a tracker group's at once."""
    name = config["name"]
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        yield (
            f"name is {name!r}, expected at most 100 letters, digits and '.', '_', '-', "
            "not beginning with '.' or '-'."
        )


def devices_are_known(config: Config) -> Iterator[str]:
    device = config["device"]
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        yield f"device is {device!r}, expected auto, cpu, cuda, cuda:N or mps."


def numbers_are_in_range(config: Config) -> Iterator[str]:
    """The bounds beside the options hold."""
    for path, value, option in options(config):
        yield from out_of_range(path, value, option)


def out_of_range(path: str, value: Any, option: Option) -> Iterator[str]:
    """Complain of a number that its option's bounds do not allow, or that files cannot hold."""
    if _number(value) and not option.allows(value):
        yield f"{path} is {value:.12g}, expected {option.limits()}."
    if type(value) is int and abs(value) >= 2**63:
        yield f"{path} is {value:.12g}, expected less than 2^63."


def lengths_fit(config: Config) -> Iterator[str]:
    """No option exceeds those that it names, where the config has them."""
    found = {path: value for path, value, _ in options(config)}
    for path, value, option in options(config):
        for other in option.others:
            large = f"{path.rpartition('.')[0]}{other}" if other.startswith(".") else other
            limit = found.get(large)
            if _number(value) and _number(limit) and value > limit:
                yield f"{path} is {value:.12g}, expected at most {large}, which is {limit}."


def classes_agree(config: Config) -> Iterator[str]:
    """No class that the config names complains of it, in the order of the groups."""
    for node in config.values():
        rules = own_rules(node[TARGET]) if isinstance(node, dict) and TARGET in node else None
        if rules is not None:
            yield from rules(config)


RULES: tuple[Rule, ...] = (
    names_are_legal,
    devices_are_known,
    numbers_are_in_range,
    lengths_fit,
    classes_agree,
)
