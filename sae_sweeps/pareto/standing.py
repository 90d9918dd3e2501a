"""How each setting stands beside the other curves at its L0: the one rule of the frontier.

Terminal, `pareto.csv`, `pareto.png` and the tracker take it from here; the page, where runs can be
filtered, has it once more in `html/standing.js`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from sae_sweeps.pareto.frontier import by_source
from sae_sweeps.pareto.lines import Line, Place, lines_of, read, usual_slope
from sae_sweeps.pareto.points import Setting

Standing = Literal["on", "tie", "unopposed", "dominated"]
ONE_SEED = 0.01
"""The least margin where a setting or its rival has one seed: how far chance goes is not known."""


@dataclass(frozen=True)
class Verdict:
    """How a setting stands, and beside which curve; of one that is unopposed there is no more."""

    standing: Standing
    gap: float | None = None
    """Its FVU / that of the best rival at its L0 - 1; infinite where the rival has 0."""
    margin: float | None = None
    """A gap that is no larger, with either sign, is a tie."""
    seeds: int | None = None
    """The fewest seeds of the two sides; with one the margin is `ONE_SEED` at least."""
    rival: str | None = None
    """The curve that has the lowest FVU there; its own where a setting of that dominates it."""

    @property
    def is_best(self) -> bool:
        """Whether nothing is better, nor as good as far as can be told."""
        return self.standing in ("on", "unopposed")


def standings(found: Sequence[Setting]) -> list[Verdict | None]:
    """Judge each setting by means over seeds; one without L0 or FVU has no verdict.

    Only settings that reconstruct the same activations are compared.
    """
    verdicts: list[Verdict | None] = [None] * len(found)
    for members in by_source(found):
        places = {index: place for index in members if (place := _place(found[index]))}
        spread = pooled_spread([found[index].values("fvu") for index in members])
        for index, verdict in zip(places, judged([*places.values()], spread), strict=True):
            verdicts[index] = verdict
    return verdicts


def judged(places: Sequence[Place], spread: float | None) -> list[Verdict]:
    """Judge settings of one source.

    A rival's value at a setting's L0 is its line's, or where lower the FVU of a setting of it with
    less L0. Where its line does not reach it counts by strict dominance alone, and so does the
    setting's own curve. So what is on the frontier or unopposed is never strictly dominated.

    Args:
        places: all settings of the source that have L0 and FVU.
        spread: as `pooled_spread` gives it.
    """
    curves: dict[str, list[Place]] = {}
    for place in places:
        curves.setdefault(place.curve, []).append(place)
    lines = lines_of(curves)
    slopes = {
        curve: usual_slope([*lines.values()], line[0].l0) if len(line) == 1 else 0.0
        for curve, line in lines.items()
    }
    reached = [_reached(place, lines, slopes) for place in places]
    return [_verdict(*pair, curves, spread) for pair in zip(places, reached, strict=True)]


def pooled_spread(groups: Sequence[Sequence[float]]) -> float | None:
    """Pool the standard deviation over seeds, as a share of the mean, by degrees of freedom.

    Returns:
        None where no setting has two seeds.
    """
    several = [group for group in groups if len(group) > 1 and fmean(group) > 0]
    freedom = sum(len(group) - 1 for group in several)
    squares = sum((len(group) - 1) * (stdev(group) / fmean(group)) ** 2 for group in several)
    return math.sqrt(squares / freedom) if several else None


def margin_of(own: int, rival: int, spread: float | None) -> float:
    """Give two standard errors of a gap, from both sides' numbers of seeds and the pooled spread.

    Where a side has one seed it is `ONE_SEED` at least.
    """
    errors = 0.0 if spread is None else 2 * spread * math.sqrt(1 / own + 1 / rival)
    return max(errors, ONE_SEED) if min(own, rival) == 1 else errors


def _place(setting: Setting) -> Place | None:
    l0, fvu = setting.mean("l0"), setting.mean("fvu")
    if l0 is None or fvu is None:
        return None
    return Place(setting.curve, l0, fvu, len(setting.values("fvu")))


def _reached(
    own: Place, lines: Mapping[str, Line], slopes: Mapping[str, float]
) -> dict[str, Place]:
    """Read the lines of the other curves, as far as they reach."""
    found = {c: read(line, own.l0, slopes[c]) for c, line in lines.items() if c != own.curve}
    return {curve: place for curve, place in found.items() if place is not None}


def _verdict(
    own: Place,
    reached: Mapping[str, Place],
    curves: Mapping[str, Sequence[Place]],
    spread: float | None,
) -> Verdict:
    beaten = list(_dominating(own, reached, curves))
    sparser = [place for curve in reached for place in curves[curve] if place.l0 <= own.l0]
    against = [*reached.values(), *sparser, *beaten]
    if not against:
        return Verdict("unopposed")
    best = min(against, key=lambda place: (place.fvu, place.seeds, place.curve))
    gap, margin = _gap(own.fvu, best.fvu), margin_of(own.seeds, best.seeds, spread)
    standing: Standing = "on" if gap < -margin else "tie" if gap <= margin else "dominated"
    seeds = min(own.seeds, best.seeds)
    return Verdict("dominated" if beaten else standing, gap, margin, seeds, best.curve)


def _dominating(
    own: Place, reached: Mapping[str, Place], curves: Mapping[str, Sequence[Place]]
) -> Iterator[Place]:
    """Find what beats it strictly, of its own curve and of those whose lines do not reach it."""
    for curve, places in curves.items():
        if curve not in reached:
            yield from (place for place in places if place.dominates(own))


def _gap(own: float, rival: float) -> float:
    if rival > 0:
        return own / rival - 1
    return math.inf if own > rival else 0.0
