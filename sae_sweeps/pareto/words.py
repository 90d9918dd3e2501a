"""What reports say of a sweep in words."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from sae_sweeps.pareto.frontier import by_source
from sae_sweeps.pareto.points import RunPoint, Setting, settings
from sae_sweeps.pareto.standing import Standing, Verdict, standings

OFF_DIAL = 0.1
"""Share by which an L0 may miss its `k` unremarked."""
MOST_NAMES = 6
MARKS: dict[Standing, str] = {"on": "★", "tie": "≈", "unopposed": "☆", "dominated": ""}
"""How settings stand, at a glance."""


def subtitle(points: Sequence[RunPoint]) -> str:
    """Say what was trained on what, as far as it is the same for all runs."""
    models = {_model(point) for point in points}
    widths = {f"d_sae {point.config.d_sae:,}" for point in points}
    tokens = {f"{_short(point.result.tokens)} tokens" for point in points}
    parts = [next(iter(known)) for known in (models, widths, tokens) if len(known) == 1]
    seeds = max(len(setting.points) for setting in settings(points))
    runs = f"{len(points)} run" + "s" * (len(points) > 1)
    return "  ·  ".join([*parts, runs, *(["bars: range over seeds"] if seeds > 1 else [])])


def _model(point: RunPoint) -> str:
    node = point.config.nodes["target_model"]
    names = [str(node[key]) for key in ("model", "hook", "path") if key in node]
    return " @ ".join(names) or point.result.choices.get("target_model", "")


def _short(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def amounts(values: Iterable[float | int | None]) -> str:
    """Name one number or two, or of more the least and the largest."""
    known = sorted({value for value in values if value is not None})
    shown = known if len(known) < 3 else [known[0], known[-1]]
    return " to ".join(f"{value:,.0f}" for value in shown) or "an unknown number of"


def off_dial(found: Sequence[Setting]) -> list[Setting]:
    """Settings whose mean L0 is far from `k`, although no fixed coefficient was asked for."""
    far = [
        setting for setting in found if abs((setting.mean("l0") or 0) / setting.k - 1) > OFF_DIAL
    ]
    return [setting for setting in far if not any(_is_fixed(point) for point in setting.points)]


def _is_fixed(point: RunPoint) -> bool:
    options = point.config.nodes["architecture"]
    return any(
        name.endswith("_coef") and isinstance(value, int | float) and value != 0
        for name, value in options.items()
    )


def frontier_line(found: Sequence[Setting]) -> str:
    """Count by curve the settings on the frontier of L0 and FVU, the ties and the unopposed."""
    several = len(by_source(found)) > 1
    what = "Frontiers of L0 and FVU, one for each target" if several else "Frontier of L0 and FVU"
    pairs = list(zip(found, standings(found), strict=True))
    curves = {
        standing: [setting.curve for setting, v in pairs if v and v.standing == standing]
        for standing in MARKS
    }
    parts = [f"{len(curves['on'])} of {len(found)} settings{_shares(curves['on'])}"]
    for name, others in (("ties", curves["tie"]), ("unopposed", curves["unopposed"])):
        parts += [f"{name} {len(others)}{_shares(others)}"] if others else []
    return f"{what}: {', '.join(parts)}"


def _shares(curves: Sequence[str]) -> str:
    shares = Counter(curves).most_common()
    names = [f"{curve}: {count}" for curve, count in shares[:MOST_NAMES]]
    names += ["..."] if len(shares) > MOST_NAMES else []
    return f" ({'; '.join(names)})" if names else ""


def margins(verdicts: Sequence[Verdict | None]) -> str:
    """Name the margins up to which gaps are ties: those of several seeds, and those of one."""
    kinds: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict and verdict.margin is not None:
            kind = "one seed" if verdict.seeds == 1 else "two standard errors over seeds"
            kinds.setdefault(kind, []).append(100 * verdict.margin)
    shown = {kind: [f"{end:.3g}%" for end in (min(m), max(m))] for kind, m in kinds.items()}
    return ", ".join(f"{' to '.join(dict.fromkeys(ends))} ({k})" for k, ends in shown.items())


def missed_line(missed: Sequence[Setting]) -> str:
    """Name settings that are off the dial."""
    names = [f"{s.curve}, k {s.k:g}: {s.mean('l0'):.3g}" for s in missed[:MOST_NAMES]]
    names += ["..."] if len(missed) > MOST_NAMES else []
    text = f"L0 misses k by more than {OFF_DIAL:.0%} ({'; '.join(names)})"
    return f"{text}: compare by L0, not by k; longer training brings them nearer"


def notes(found: Sequence[Setting]) -> list[str]:
    """What to know before two settings are compared."""
    points = [point for setting in found for point in setting.points]
    lines = list(_of_measurement(points))
    if len(by_source(found)) > 1:
        several = "have a frontier each and cannot be compared by FVU"
        lines.append(
            f"{len(by_source(found))} kinds of activations are reconstructed: they {several}."
        )
    for name, values in _conditions(points).items():
        if len(values) > 1:
            parts = ", ".join(f"{value} ({count} runs)" for value, count in values.most_common())
            lines.append(f"Runs differ in {name}: {parts}.")
    alone = sum(len(setting.points) == 1 for setting in found)
    if alone:
        which = (
            "Every setting has" if alone == len(found) else f"{alone} of {len(found)} settings have"
        )
        lines.append(f"{which} one seed only: how much of a difference is chance cannot be told.")
    if missed := off_dial(found):
        lines.append(f"{missed_line(missed)}.")
    return lines


def _of_measurement(points: Sequence[RunPoint]) -> Iterator[str]:
    held_out, ce = (
        amounts(point.result.evaluation.get(key) for point in points)
        for key in ("tokens", "ce_tokens")
    )
    where = "without a batch, as an SAE is used"
    measured = f"L0, FVU and dead latents are measured on {held_out} held-out tokens, {where}"
    recovered = any(point.get("ce_recovered") is not None for point in points)
    yield measured + (f"; cross-entropy on {ce}." if recovered else ".")
    yield f"A latent counts as dead that is active on none of these {held_out} tokens."
    left_out = {point.result.evaluation.get("left_out_tokens", 0) for point in points}
    if left_out != {0}:
        which = "special tokens, first positions or of too large a norm"
        yield f"Left out among them: {amounts(left_out)} tokens that are {which}."


def _conditions(points: Sequence[RunPoint]) -> dict[str, Counter[str]]:
    """What should be the same for runs that are compared, by name."""
    return {
        "training tokens": Counter(f"{point.result.tokens:,}" for point in points),
        "tokens measured on": Counter(
            f"{point.result.evaluation.get('tokens', 0):,}" for point in points
        ),
        "precision": Counter(point.result.cost.get("precision", "?") for point in points),
        "device": Counter(point.result.cost.get("device", "?") for point in points),
    }
