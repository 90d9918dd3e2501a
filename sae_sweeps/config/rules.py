"""Rules between options, on the checked dict, before anything starts; no torch.

A rule yields complaints, one line each: dotted path, value, what is allowed. It finds its options
by name in whatever node holds them, never by a method's name, so a variant from outside obeys too.
"""

import math
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from typing import Any

from sae_sweeps.config.data_rules import (
    contexts_fit,
    data_sets_can_be_had,
    text_files_exist,
    tokens_suffice,
)
from sae_sweeps.config.groups import GROUPS, METHOD
from sae_sweeps.config.options import SECTIONS
from sae_sweeps.config.target_rules import activation_files_exist, models_and_hooks_exist
from sae_sweeps.errors import ConfigError

Config = dict[str, Any]
Rule = Callable[[Config], Iterator[str]]


NODES = (*SECTIONS, *(group.name for group in GROUPS if group.trains))

LIMITS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    (
        "expected 1 to 2^26",
        lambda v: 1 <= v <= 2**26,
        "d_sae d_in features tokens_per_row chunk_tokens calibration_tokens",
    ),
    ("expected 2 to 2^26", lambda v: 2 <= v <= 2**26, "batch_tokens"),  # one has no variance
    ("expected 0 to 10", lambda v: 0 <= v <= 10, "*sigma"),
    ("expected 1 to 1024", lambda v: 1 <= v <= 1024, "threads"),
    ("expected 0 to 2^63 - 1", lambda v: 0 <= v < 2**63, "seed"),
    ("expected at least 0 and less than 1", lambda v: 0 <= v < 1, "beta1 beta2 correlation"),
    ("expected more than 0 and at most 1", lambda v: 0 < v <= 1, "p"),
    ("expected more than 0 and less than 1", lambda v: 0 < v < 1, "held_out_share"),
    (
        "expected more than 0",
        lambda v: v > 0,
        "k lr gradient_clip_norm encoder_scale target_l0 bandwidth initial_threshold tau *_factor "
        "encoder_share l0",
    ),
    (
        "expected at least 0",
        lambda v: v >= 0,
        "*warmup_tokens p_start_tokens decay_tokens rewarm_tokens mutual_tokens ce_tokens exponent "
        "shift *coef offset noise checkpoint_minutes",
    ),
    ("expected at least 3", lambda v: v >= 3, "context_tokens"),  # BOS, one, and its next
    (
        "expected at least 1",
        lambda v: v >= 1,
        "tokens times p_steps k_aux rows_per_forward group_size *_tokens",
    ),
)
"""What a number may be, by the option's name in any node; the first line that fits holds."""

AT_MOST = (
    ("k", "d_sae"),
    ("*.k", "d_sae"),
    ("*.target_l0", "d_sae"),
    ("*.k_aux", "d_sae"),
    ("stream.batch_tokens", "stream.chunk_tokens"),
    ("stream.batch_tokens", "training.tokens"),
    ("stream.batch_tokens", "evaluation.tokens"),
    ("stream.batch_tokens", "fine_tune.tokens"),
    ("training.dead_window_tokens", "training.tokens"),
    ("*.mutual_tokens", "training.tokens"),
    ("*.coef_warmup_tokens", "training.tokens"),
    ("architecture.p_start_tokens", "architecture.p_end_tokens"),
    ("*.p_end_tokens", "training.tokens"),
    ("evaluation.ce_tokens", "evaluation.tokens"),
    ("target_model.l0", "target_model.features"),
    ("evaluation.tokens", "target_model.held_out_tokens"),
    ("evaluation.tokens", "data.held_out_tokens"),
    ("resampling.window_tokens", "resampling.every_tokens"),
    ("resampling.sample_tokens", "resampling.every_tokens"),
    ("resampling.rewarm_tokens", "resampling.every_tokens"),
)
"""Pairs of options whose first may not exceed the second."""


def obey(config: Config) -> None:
    """Raise ConfigError with the first complaint of any rule."""
    for rule in RULES:
        for complaint in rule(config):
            raise ConfigError(complaint)


def options(config: Config) -> Iterator[tuple[str, Any]]:
    """Walk through the options that we know, as dotted path and value.

    Options of groups come last: their defaults may be shares of the others, which are to blame.
    """
    yield from ((key, value) for key, value in config.items() if not isinstance(value, dict))
    for node in NODES:
        yield from ((f"{node}.{name}", value) for name, value in config[node].items())


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
    for path, value in options(config):
        name = path.rpartition(".")[2]
        fitting = (lim for lim in LIMITS if any(fnmatchcase(name, n) for n in lim[2].split()))
        for text, allowed, _ in islice(fitting, 1):
            if _number(value) and not allowed(value):
                yield f"{path} is {value:.12g}, {text}."
        if type(value) is int and abs(value) >= 2**63:
            yield f"{path} is {value:.12g}, expected less than 2^63."


def lengths_fit(config: Config) -> Iterator[str]:
    found = dict(options(config))
    for small, large in AT_MOST:
        end = small.removeprefix("*")
        for path, value in found.items():
            matches = path == small or (small.startswith("*") and path.endswith(end))
            both = _number(value) and _number(found.get(large))
            if matches and both and value > found[large]:
                yield f"{path} is {value:.12g}, expected at most {large}, which is {found[large]}."


def warmup_and_decay_fit(config: Config) -> Iterator[str]:
    schedule, tokens = config["schedule"], config["training"]["tokens"]
    warmup, decay = (schedule.get(f"{name}_tokens", 0) for name in ("warmup", "decay"))
    if _number(warmup) and _number(decay) and warmup + decay > tokens:
        yield (
            f"schedule.warmup_tokens is {warmup} and schedule.decay_tokens is {decay}: "
            f"together expected at most training.tokens, which is {tokens}."
        )


def fractions_make_a_whole(config: Config) -> Iterator[str]:
    for path, value in options(config):
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
