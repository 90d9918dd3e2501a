"""Names the curves of a sweep: a method, and the options that part its runs besides the dial."""

import json
import re
from collections.abc import Iterator, Sequence

from sae_sweeps.config.history import acting, walk
from sae_sweeps.config.options import RunConfig

SEED = re.compile(r"(.+\.)?seed")
"""Options that replicates may differ in."""
DIAL = re.compile(r"k|architecture\.\w+_coef")
"""Options that move a run along its curve: the budget, or a penalty's fixed coefficient."""
PLAIN = ("training.", "optimizer.", "schedule.", "stream.")
"""Where options stand that users set rather than variants."""
ABSENT = "absent"

Options = dict[str, str]
"""Dotted option path to its value as JSON."""


def names(runs: Sequence[tuple[str, RunConfig]]) -> list[str]:
    """Name each run's curve, given its label and config: `gated`, or `gated, d_sae=2048`."""
    options = [options_of(config) for _, config in runs]
    found = [label for label, _ in runs]
    for members, parting in _by_label(found, options):
        for index in members:
            found[index] = ", ".join([found[index], *_describe(options[index], parting)])
    return found


def parting(runs: Sequence[tuple[str, RunConfig]]) -> dict[str, list[str]]:
    """Give the options that part runs of one label, by dotted path, and every run's value."""
    options = [options_of(config) for _, config in runs]
    keys = dict.fromkeys(
        key for _, keys in _by_label([label for label, _ in runs], options) for key in keys
    )
    return {key: [_text(own, key) for own in options] for key in keys}


def _by_label(
    labels: Sequence[str], options: Sequence[Options]
) -> list[tuple[list[int], list[str]]]:
    """Of each label its runs, by their index, and what parts them."""
    found: dict[str, list[int]] = {}
    for index, label in enumerate(labels):
        found.setdefault(label, []).append(index)
    return [(members, _parting([options[i] for i in members])) for members in found.values()]


def setting(config: RunConfig) -> str:
    """Give what replicates have in common: all options that act on training, seeds left out."""
    return json.dumps(options_of(config), sort_keys=True)


def order(curve: str) -> list[tuple[int, str, float]]:
    """Sort curves by name, and numbers in names by value."""
    parts = re.findall(r"\d+(?:\.\d+)?(?:e-?\d+)?|\D+", curve)
    return [(1, "", float(part)) if part[0].isdigit() else (0, part, 0.0) for part in parts]


def _parting(runs: Sequence[Options]) -> list[str]:
    """Choose the options that part runs of one label; what follows from the others is left out.

    An option whose value is a function of `k` (the budget, a penalty's target) follows from it.
    """
    keys = dict.fromkeys(key for run in runs for key in run if not DIAL.fullmatch(key))
    chosen: list[str] = []
    for key in sorted(keys, key=_plainness):
        known = ["k", *chosen]
        if not _follows(key, known, runs):
            chosen.append(key)
    return chosen


def _follows(key: str, known: Sequence[str], runs: Sequence[Options]) -> bool:
    """Say whether equal values of `known` always mean equal values of `key`."""
    seen: dict[tuple[str, ...], str] = {}
    for run in runs:
        place = tuple(run.get(name, ABSENT) for name in known)
        value = run.get(key, ABSENT)
        if seen.setdefault(place, value) != value:
            return False
    return True


def _plainness(key: str) -> tuple[int, bool]:
    """Prefer what a user sets (`d_sae`, `optimizer.lr`) to what is derived from it."""
    return key.count("."), not key.startswith(PLAIN)


def _describe(options: Options, keys: Sequence[str]) -> Iterator[str]:
    for key in keys:
        short = key.rpartition(".")[2]
        alone = sum(other.rpartition(".")[2] == short for other in keys) == 1
        value = _text(options, key)
        yield f"{short if alone else key}={value}"


def _text(options: Options, key: str) -> str:
    """An option's value as a user writes it."""
    value = options.get(key, ABSENT)
    return json.loads(value) if value.startswith('"') else value


def options_of(config: RunConfig) -> Options:
    """Give the options that act on training, with the dial and without seeds."""
    found = walk(acting(config.tree, keep=("k",)))
    return {path: json.dumps(value) for path, value in found if not SEED.fullmatch(path)}
