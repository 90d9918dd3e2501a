"""Rules between options, on the checked dict, before anything starts; no torch.

A rule yields complaints, one line each: dotted path, value, what is allowed. Bounds stand beside
the options themselves (see `marks`); here is what concerns several options or files.
"""

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from sae_sweeps.config.data_rules import (
    contexts_fit,
    data_sets_can_be_had,
    text_files_exist,
    tokens_suffice,
)
from sae_sweeps.config.groups import GROUPS, METHOD
from sae_sweeps.config.options import ROOT, SECTIONS
from sae_sweeps.config.signature import TARGET, Option, signature
from sae_sweeps.config.target_rules import activation_files_exist, models_and_hooks_exist
from sae_sweeps.errors import ConfigError

Config = dict[str, Any]
Rule = Callable[[Config], Iterator[str]]


NODES = (*SECTIONS, *(group.name for group in GROUPS if group.trains))


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


def warmup_and_decay_fit(config: Config) -> Iterator[str]:
    schedule, tokens = config["schedule"], config["training"]["tokens"]
    warmup, decay = (schedule.get(f"{name}_tokens", 0) for name in ("warmup", "decay"))
    if _number(warmup) and _number(decay) and warmup + decay > tokens:
        yield (
            f"schedule.warmup_tokens is {warmup} and schedule.decay_tokens is {decay}: "
            f"together expected at most training.tokens, which is {tokens}."
        )


def fractions_make_a_whole(config: Config) -> Iterator[str]:
    for path, value, _ in options(config):
        if path.endswith(".fractions") and isinstance(value, list):
            if any(share <= 0 for share in value) or abs(sum(value) - 1) > 1e-6:
                yield f"{path} is {value}, expected positive numbers that sum to 1."
            elif len(value) > config["d_sae"]:
                yield f"{path} has {len(value)} parts, expected at most d_sae of them."


def resampling_fits(config: Config) -> Iterator[str]:
    """Fresh latents need a penalty that silences them again, and time before the decay."""
    node, tokens = config["resampling"], config["training"]["tokens"]
    budget = "k" in config["allocator"]
    if "encoder_share" in node and (budget or "l1_coef" not in config["architecture"]):
        yield (
            f"resampling.encoder_share is {node['encoder_share']:g}: resampling needs an L1 "
            "penalty, so allocator=none and an architecture with l1_coef (as method=relu has, or "
            "gated). Else expected resampling=none."
        )
    every, times = node.get("every_tokens"), node.get("times")
    end = tokens - config["schedule"].get("decay_tokens", 0)
    if _number(every) and _number(times) and every * times > end:
        yield (
            f"resampling.times is {times}: the last would come after {every * times} tokens, "
            f"expected at most {end}, where the learning rate's decay begins."
        )


def budgets_fill_a_slot(config: Config) -> Iterator[str]:
    """A budget below one token-latent pair a batch leaves latents dead, unless it is drawn."""
    batch = config["stream"]["batch_tokens"]
    for group in METHOD:
        node = config[group]
        if not _number(node.get("k")):
            continue
        if round(node["k"] * batch) < 1:
            yield (
                f"{group}.k is {node['k']:.12g}: with stream.batch_tokens {batch} that is no "
                "latent in a whole batch; give a larger k or larger batches."
            )
        elif _number(node.get("exponent")) and _number(node.get("shift")):
            yield from _zipf_fills_a_slot(group, node, config["d_sae"], batch)


def _zipf_fills_a_slot(group: str, node: Config, d_sae: int, batch: int) -> Iterator[str]:
    density = rarest_density(d_sae, node["k"], node["exponent"], node["shift"])
    needed = math.ceil(1 / density - 1e-9) if density > 0 else math.inf
    if batch < needed and node.get("rounding") != "stochastic":
        larger = f"stream.batch_tokens={needed} or more, or " if density > 0 else ""
        drawn = f", or {group}.rounding=stochastic" if "rounding" in node else ""
        yield (
            f"stream.batch_tokens is {batch}: the rarest latent would get "
            f"{density * batch:.2g} tokens of a batch, and needs 1. Allowed is "
            f"{larger}a larger k or {group}.shift, or a smaller d_sae or {group}.exponent{drawn}."
        )


@cache
def rarest_density(d_sae: int, k: int | float, exponent: int | float, shift: int | float) -> float:
    """Return the least of the densities min(1, C (rank + shift)^-exponent), which sum to k."""
    import numpy as np  # here, since most configs have no use for it

    weights = (np.arange(1, d_sae + 1) + shift) ** -exponent
    rest = weights[::-1].cumsum()[::-1]  # rest[n]: what follows the first n ranks
    budget = k - np.arange(d_sae)  # what the first n ranks leave when they take every token
    capped = int(np.argmax(budget * weights <= rest))
    return float(budget[capped] * weights[-1] / rest[capped]) if rest[capped] > 0 else 0.0


RULES: tuple[Rule, ...] = (
    names_are_legal,
    devices_are_known,
    numbers_are_in_range,
    lengths_fit,
    warmup_and_decay_fit,
    fractions_make_a_whole,
    resampling_fits,
    budgets_fill_a_slot,
    activation_files_exist,
    models_and_hooks_exist,
    contexts_fit,
    tokens_suffice,
    text_files_exist,
    data_sets_can_be_had,
)
