"""Reports a sweep: tables in the terminal, `pareto.csv`, `pareto.png`, the tracker's summary."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sae_sweeps import files
from sae_sweeps.pareto import similarity, table
from sae_sweeps.pareto.frontier import frontier
from sae_sweeps.pareto.points import Point, Results, Setting, by_curve, read, settings
from sae_sweeps.tracking.interface import Summary, Tracking
from sae_sweeps.tracking.off import Off

LOG_WIDTH = 140
"""Columns where there is no terminal to ask, as in a job's log."""
MEASURES = ("fvu", "ce_recovered", "dead_frac")
"""What is drawn over L0."""


def report(
    folder: Path, tracking: Tracking | None = None, console: Console | None = None
) -> Results:
    """Print a sweep's results, write `pareto.csv` and `pareto.png`, mirror them in the tracker.

    Runs that differ in seeds only have their decoders compared, which may take minutes the first
    time. A sweep without a single result writes nothing. Repeating a report renews it.
    """
    folder = Path(folder)
    console = console or _console()
    with console.status("comparing decoders between seeds"):
        results = similarity.with_similarity(read(folder), folder)
    table.show(results, console)
    if results.points:
        from sae_sweeps.pareto import plot  # matplotlib takes a second to load

        rows = _rows(results.points)
        files.write_text(folder / "pareto.csv", _csv(rows))
        with files.replacing(folder / "pareto.png") as path:
            plot.draw(results, path)
        (tracking or Off()).summarise(
            Summary(results.sweep, folder, rows, _charts(results.points), folder / "pareto.png")
        )
        shown = os.path.relpath(folder)
        line = Text(f"Written: {shown}/pareto.csv, {shown}/pareto.png")
        console.print(line, soft_wrap=True)
    return results


def _console() -> Console:
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=LOG_WIDTH)


def _rows(points: list[Point]) -> list[dict[str, Any]]:
    """Give one row per run, with every scalar of its result."""
    found = settings(points)
    best = _runs_on_frontier(found)
    best_of_curve = {run for curve in by_curve(points).values() for run in _runs_on_frontier(curve)}
    return [
        {
            "run": point.run,
            "label": point.label,
            "curve": point.curve,
            **{
                group: name
                for group, name in point.result["choices"].items()
                if group != "tracking"
            },
            "k": point.k,
            "d_sae": point.d_sae,
            "seed": point.seed,
            "tokens": point.tokens,
            "frontier": int(point.run in best),
            "curve_frontier": int(point.run in best_of_curve),
            **point.metrics,
            **{f"evaluation_{k}": v for k, v in point.result.get("evaluation", {}).items()},
            **{f"cost_{k}": v for k, v in point.result.get("cost", {}).items()},
        }
        for setting in found
        for point in setting.points
    ]


def _runs_on_frontier(found: list[Setting]) -> set[str]:
    """Name the runs whose setting, averaged over seeds, is on the frontier of L0 and FVU."""
    return {point.run for setting in frontier(found) for point in setting.points}


def _csv(rows: list[dict[str, Any]]) -> str:
    """Write full precision: Python's shortest text that reads back as the same number."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _charts(points: list[Point]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Give the curves over L0 that can be drawn, means over seeds."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for measure in MEASURES:
        for curve, found in by_curve(points).items():
            pairs = [(setting.mean("l0"), setting.mean(measure)) for setting in found]
            known = sorted((x, y) for x, y in pairs if x is not None and y is not None)
            if known:
                line = ([x for x, _ in known], [y for _, y in known])
                charts.setdefault(measure, {})[curve] = line
    return charts
