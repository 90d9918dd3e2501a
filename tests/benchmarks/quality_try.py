"""Screening for `quality`: ours with other options beside its defaults and the best peer."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import fmean

from tests.benchmarks.engine_tables import grid
from tests.benchmarks.quality_cases import OURS, Case
from tests.benchmarks.quality_rows import Row, Train
from tests.benchmarks.quality_search import Point, curve_slope, matched


@dataclass(frozen=True)
class Trial:
    """What is tried, and where."""

    name: str
    words: tuple[str, ...]
    sets: Sequence[str]
    methods: Sequence[str]
    ks: Sequence[int]
    seeds: Sequence[int]

    def case(self, place: str, method: str, k: int, seed: int, tried: bool) -> Case:
        """A training of ours, by default or with what is tried."""
        return Case(place, OURS, method, seed, k, None, self.words if tried else ())

    def cases(self, tried: bool) -> list[Case]:
        """All of them."""
        return [
            self.case(place, method, k, seed, tried)
            for place in self.sets
            for method in self.methods
            for k in self.ks
            for seed in self.seeds
        ]


def trained(trial: Trial, train: Train, jobs: int) -> None:
    """Train the defaults where their rows lack, and what is tried."""
    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, [*trial.cases(tried=False), *trial.cases(tried=True)]))


def table(trial: Trial, train: Train, peer: dict[tuple[str, str, int], float]) -> list[str]:
    """Lines of a table.

    Args:
        train: gives rows.
        peer: the best peer's FVU by set, method and k, where known.
    """
    cells: list[list[str]] = []
    for place in trial.sets:
        for method in trial.methods:
            for k in trial.ks:
                plain, other = (
                    [train(trial.case(place, method, k, s, tried)) for s in trial.seeds]
                    for tried in (False, True)
                )
                slope = _slope(trial, train, place, method, k)
                best = peer.get((place, method, k))
                cells.append([place, method, f"{k}", *_figures(plain, other, k, slope, best)])
    head = ["set", "method", "k", "FVU default", f"FVU {trial.name}", "over default"]
    return grid([*head, "over best peer", "default over it", "L0", "dead %", "CPU s"], cells)


def _slope(trial: Trial, train: Train, place: str, method: str, k: int) -> float | None:
    rows = {
        at: row
        for at in trial.ks
        if "error" not in (row := train(trial.case(place, method, at, trial.seeds[0], False)))
    }
    return curve_slope({at: Point.of(at, row) for at, row in rows.items()}, k)


def _figures(
    plain: list[Row], other: list[Row], k: int, slope: float | None, peer: float | None
) -> list[str]:
    if errors := [row["error"] for row in (*plain, *other) if "error" in row]:
        return [errors[0], *[""] * 7]
    before, after = (
        fmean(matched([Point.of(k, row)], k, slope) for row in rows) for rows in (plain, other)
    )
    both = [(fmean(r[n] for r in plain), fmean(r[n] for r in other)) for n in ("l0", "cpu_s")]
    dead = [100 * fmean(row["dead_frac"] for row in rows) for rows in (plain, other)]
    return [
        *(f"{before:.4f}", f"{after:.4f}", f"{after / before:.3f}"),
        *("" if peer is None else f"{fvu / peer:.3f}" for fvu in (after, before)),
        " / ".join(f"{l0:.2f}" for l0 in both[0]),
        " / ".join(f"{share:.1f}" for share in dead),
        " / ".join(f"{seconds:.0f}" for seconds in both[1]),
    ]
