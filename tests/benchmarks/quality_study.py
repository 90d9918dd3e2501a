"""What is trained of a contender in `quality`, and what comes of it.

A study asks for rows, one after another. With `Bench.train` they are trained for; with `Rows.row`
it tells from kept rows alone what it came to, or raises Missing.
"""

import math
from dataclasses import dataclass, field

from tests.benchmarks.quality_cases import KS, SEEDS, SWEPT_K, Case, Contender
from tests.benchmarks.quality_rows import Row, Train
from tests.benchmarks.quality_search import (
    Point,
    best_rate,
    curve_slope,
    matched,
    nearest,
    next_dial,
    reached,
    there,
)


class Failed(Exception):
    """A contender of which a training failed; what was wrong."""


@dataclass(frozen=True)
class Level:
    """What one seed came to at one k."""

    fvu: float
    """at L0 = k"""
    row: Row
    """of the training whose L0 is nearest to k"""
    there: bool
    """whether `fvu` rests on trainings close enough to k"""


@dataclass
class Study:
    """A contender on a set."""

    set: str
    contender: Contender
    train: Train
    dials: dict[int, float] = field(default_factory=dict[int, float])
    """by k, where L0 should be k by what is known from trainings so far"""

    def best_rate(self) -> float:
        """The learning rate of the lowest FVU at L0 32, one seed; Failed where there is none."""
        errors: list[Failed] = []

        def fvu(rate: float) -> float:
            try:
                points = self.points(rate, SWEPT_K, SEEDS[0])
                if not there(points, SWEPT_K):
                    closest = nearest(points, SWEPT_K).l0
                    raise Failed(f"L0 {SWEPT_K} was not reached, but {closest:.3g}")
                return matched(points, SWEPT_K)
            except Failed as error:
                errors.append(error)
                return math.inf

        rate = best_rate(fvu, self.contender.lr)
        if math.isinf(fvu(rate)):
            raise errors[0]
        return rate

    def levels(self, rate: float | None) -> dict[int, list[Level]]:
        """By k, a level for each seed, at a learning rate or by default; Failed if one fails."""
        first = {k: self.points(rate, k, SEEDS[0]) for k in KS}
        curve = {k: nearest(points, k) for k, points in first.items()}
        found: dict[int, list[Level]] = {}
        for k in KS:
            slope = curve_slope(curve, k)
            points = [first[k], *(self.points(rate, k, seed) for seed in SEEDS[1:])]
            found[k] = [
                Level(
                    matched(own, k, slope),
                    self.row(rate, seed, nearest(own, k).dial),
                    there(own, k),
                )
                for seed, own in zip(SEEDS, points, strict=True)
            ]
        return found

    def points(self, rate: float | None, k: int, seed: int) -> list[Point]:
        """Trainings around L0 = k; raises Failed where the first one failed."""
        errors: list[str] = []

        def train(dial: float) -> Point | None:
            row = self.row(rate, seed, dial)
            if "error" not in row and math.isfinite(row["fvu"]):
                return Point.of(dial, row)
            errors.append(row.get("error", "it diverged"))
            return None

        them = self.contender
        if them.dial == "fixed":
            points = [point] if (point := train(float(k))) else []
        else:
            points = reached(train, k, self._first(k), them.power, them.whole)
        if not points:
            raise Failed(errors[0])
        self.dials[k] = next_dial(points, k, them.power, them.whole, exactly=True)
        return points

    def _first(self, k: int) -> float:
        """The dial that is tried first."""
        them = self.contender
        if k in self.dials:
            return self.dials[k]
        if them.dial == "k" or not self.dials:
            return them.start(k)
        other = min(self.dials, key=lambda known: abs(math.log(known / k)))
        return float(f"{self.dials[other] * (k / other) ** (1 / them.power):.3g}")

    def row(self, rate: float | None, seed: int, dial: float) -> Row:
        """The row of one training."""
        them = self.contender
        return self.train(Case(self.set, them.name, them.method, seed, dial, rate))
