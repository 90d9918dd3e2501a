"""What is trained of a contender in `quality`, and what comes of it.

A study asks for rows, one after another: with `Bench.train` they are trained for, with `Rows.row`
it tells from kept rows alone what it came to, or raises Missing.
"""

import math
from dataclasses import dataclass, replace
from functools import partial

from tests.benchmarks.quality_cases import KS, OURS, SEEDS, SWEPT_K, Case, Contender
from tests.benchmarks.quality_rows import Row, Train
from tests.benchmarks.quality_search import (
    NEAR,
    Point,
    best_rate,
    matched,
    next_dial,
    reached,
)


@dataclass(frozen=True)
class Level:
    """What one seed came to at one k."""

    fvu: float
    """at L0 = k"""
    l0: float
    """of the training nearest to k, as are the rest"""
    dead_frac: float
    cpu_s: float
    points: tuple[Point, ...] = ()


class Failed(Exception):
    """A contender of which a training failed."""


@dataclass(frozen=True)
class Study:
    """A contender on a set; ours by default, or at its best learning rate."""

    set: str
    contender: Contender
    train: Train
    default_rate: bool = False

    def best(self) -> float | None:
        """The learning rate of the lowest FVU at L0 32, one seed; None: the default."""
        if self.default_rate:
            return None
        return best_rate(self._fvu, self.contender.lr)

    def levels(self, rate: float | None, k: int) -> list[Level]:
        """A level for each seed; the first one's dials serve the others.

        Raises:
            Failed: with what was wrong.
        """
        levels = [self.level(rate, k, SEEDS[0])]
        for seed in SEEDS[1:]:
            levels.append(self.level(rate, k, seed, levels[0].points))
        return levels

    def level(
        self, rate: float | None, k: int, seed: int, known: tuple[Point, ...] = ()
    ) -> Level:
        """Train around L0 = k; `known` are the points of another seed."""
        rows: dict[float, Row] = {}
        train = partial(self._point, rate, seed, rows)
        them = self.contender
        if them.dial == "fixed":
            points = [point] if (point := train(float(k))) else []
        else:
            first = self._first(k, known) or them.start(k)
            points = reached(train, k, first, them.power, them.whole)
        if not points:
            raise Failed(next(iter(rows.values())).get("error", "no latent is active"))
        nearest = min(points, key=lambda point: abs(math.log(point.l0 / k)))
        row = rows[nearest.dial]
        fvu = matched(points, k, _slope_of(known, k))
        return Level(fvu, row["l0"], row["dead_frac"], row["cpu_s"], tuple(points))

    def _first(self, k: int, known: tuple[Point, ...]) -> float | None:
        """Of known points, or of what this contender needed at another learning rate."""
        if not known:
            return None
        near = [point for point in known if abs(point.l0 / k - 1) <= NEAR]
        if len(near) == 1 or not near:
            return min(known, key=lambda point: abs(math.log(point.l0 / k))).dial
        return next_dial(near, k, self.contender.power, self.contender.whole)

    def _fvu(self, rate: float) -> float:
        try:
            level = self.level(rate, SWEPT_K, SEEDS[0])
        except Failed:
            return math.inf
        return level.fvu

    def _point(
        self, rate: float | None, seed: int, rows: dict[float, Row], dial: float
    ) -> Point | None:
        case = Case(self.set, self.contender.name, self.contender.method, seed, dial, rate)
        row = rows[dial] = self.train(case)
        if "error" in row or not math.isfinite(row["fvu"]):
            return None
        return Point(dial, row["l0"], row["fvu"])
