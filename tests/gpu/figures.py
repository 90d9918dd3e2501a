"""What parts found: rows of figures, and what is asked of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

Row = Mapping[str, Any]


class Figures:
    """Rows by the part that told them."""

    def __init__(self, rows: Mapping[str, Sequence[Row]]) -> None:
        self._rows = rows

    def rows(self, part: str, **where: Any) -> list[Row]:
        """The rows of a part that say this of themselves, in the order in which they came."""
        return [row for row in self._rows.get(part, ()) if where.items() <= row.items()]

    def one(self, part: str, figure: str, **where: Any) -> float | None:
        """A figure of the last such row; None where there is none."""
        found = self._numbers(part, figure, where)
        return found[-1] if found else None

    def most(self, part: str, figure: str, **where: Any) -> float | None:
        """The largest of such rows' figures; None where there are none."""
        return max(self._numbers(part, figure, where), default=None)

    def _numbers(self, part: str, figure: str, where: Row) -> list[float]:
        found = [row.get(figure) for row in self.rows(part, **where)]
        return [each for each in found if is_number(each)]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a figure can be shown and compared: a part may have told anything."""
    return isinstance(value, int | float) and math.isfinite(value)


def ratio(above: float | None, below: float | None) -> float | None:
    """above / below, where there are both."""
    return above / below if above is not None and below else None


@dataclass(frozen=True)
class Goal:
    """What a figure should be."""

    text: str
    bound: float
    figure: Callable[[Figures], float | None]
    at_least: bool = False
    """Whether the bound is the least; else it is the most."""

    def judged(self, figures: Figures, rehearsal: bool) -> dict[str, Any]:
        """The goal beside its figure; in a rehearsal figures are looked up and not judged."""
        found = self.figure(figures)
        verdict = "not judged" if rehearsal else "no figure"
        if found is not None and not rehearsal:
            met = found >= self.bound if self.at_least else found <= self.bound
            verdict = "met" if met else "missed"
        sign = "≥" if self.at_least else "≤"
        return {"goal": self.text, "bound": f"{sign} {self.bound:g}", "figure": found} | {
            "verdict": verdict
        }


@dataclass(frozen=True)
class Grid:
    """How a part's rows stand in a table: a figure by what is measured, and at which size."""

    figure: str
    by: str
    across: str = "size"
    aside: str | None = None
    """Another figure, in brackets."""
