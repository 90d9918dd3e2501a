"""Reports a sweep: tables in the terminal, `pareto.csv`, `pareto.png`, the tracker's summary."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from sae_sweeps.errors import ConfigError, visible
from sae_sweeps.pareto import similarity, table
from sae_sweeps.pareto.measured import panels
from sae_sweeps.pareto.points import Results, RunPoint, by_curve, read, settings
from sae_sweeps.pareto.rows import rows
from sae_sweeps.pareto.words import frontier_line
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.system import files
from sae_sweeps.system.terminal import Terminal
from sae_sweeps.tracking.interface import Summary, Tracking
from sae_sweeps.tracking.off import Off

LOG_WIDTH = 140
"""Columns where there is no terminal to ask, as in a job's log."""


def report(
    folder: Path, tracking: Tracking | None = None, console: Console | None = None
) -> Results:
    """Print a sweep's results, write `report.html`, `pareto.csv` and `pareto.png`, and mirror.

    Runs that differ in seeds only have their decoders compared, which may take minutes the first
    time. A sweep without a single result writes nothing. Repeating a report renews it.
    """
    place = SweepFolder(Path(folder))
    folder = place.path
    console = console or _console()
    with console.status("comparing decoders between seeds"):
        results = similarity.with_similarity(read(folder), folder)
    table.show(results, console)
    if results.points:
        from sae_sweeps.pareto import page, plot  # matplotlib takes a second to load

        found = rows(results.points)
        files.write_text(place.table, _csv(found))
        with files.replacing(place.picture) as path:
            plot.draw(results, path)
        page.write(place.page, [(folder, results)])
        (tracking or Off()).summarise(
            Summary(
                results.sweep,
                folder,
                found,
                frontier_line(settings(results.points)),
                _charts(results.points),
                place.picture,
            )
        )
        written = [os.path.relpath(path) for path in (place.page, place.table, place.picture)]
        console.print(Text(f"Written: {', '.join(written)}"), soft_wrap=True)
    return results


def report_side_by_side(
    folders: Sequence[Path], path: Path, console: Console | None = None
) -> None:
    """Write one page of several sweeps.

    Raises:
        ConfigError: if none of them has a result.
    """
    from sae_sweeps.pareto import page

    console = console or _console()
    with console.status("comparing decoders between seeds"):
        found = [(f, similarity.with_similarity(read(f), f)) for f in folders]
    if not any(results.points for _, results in found):
        names = ", ".join(str(folder) for folder in folders)
        raise ConfigError(f"{names}: no result so far, so there is nothing to compare.")
    page.write(path, found)
    console.print(Text(f"Written: {os.path.relpath(path)}"), soft_wrap=True)


def _console() -> Console:
    console = Terminal()
    return console if console.is_terminal or "COLUMNS" in os.environ else Terminal(width=LOG_WIDTH)


def _csv(rows: list[dict[str, Any]]) -> str:
    """Write full precision: Python's shortest text that reads back as the same number."""
    shown = [{_harmless(column): _harmless(cell) for column, cell in row.items()} for row in rows]
    columns = list(dict.fromkeys(column for row in shown for column in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(shown)
    return text.getvalue()


def _harmless(cell: Any) -> Any:
    """Keep a text, which may be somebody else's, from commanding a spreadsheet or a terminal."""
    if not isinstance(cell, str):
        return cell
    return visible(f"'{cell}" if cell.startswith(("=", "+", "-", "@")) else cell)


def _charts(points: list[RunPoint]) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Give the curves over L0 that can be drawn, means over seeds."""
    charts: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for measure, _ in panels(points):
        for curve, found in by_curve(points).items():
            pairs = [(setting.mean("l0"), setting.mean(measure.name)) for setting in found]
            known = sorted((x, y) for x, y in pairs if x is not None and y is not None)
            if known:
                line = ([x for x, _ in known], [y for _, y in known])
                charts.setdefault(measure.name, {})[curve] = line
    return charts
