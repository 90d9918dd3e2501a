"""Shows a sweep's results in the terminal."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from sae_sweeps.measures import Column, Measure
from sae_sweeps.pareto.frontier import by_source, matched
from sae_sweeps.pareto.measured import columns
from sae_sweeps.pareto.points import Results, Setting, by_curve, settings
from sae_sweeps.pareto.similarity import MOST_LATENTS, too_wide
from sae_sweeps.pareto.standing import Standing, Verdict, standings
from sae_sweeps.pareto.words import (
    MARKS,
    amounts,
    frontier_line,
    margins,
    missed_line,
    off_dial,
)

MOST_ROWS = 100
"""A longer table leaves out what is dominated."""
MOST_FAILURES = 10


def show(results: Results, console: Console) -> None:
    """Print the results, the comparison at equal L0, the frontier and what is missing."""
    room = console.width
    if results.points:
        curves = by_curve(results.points)
        tables = [_results(results.sweep, curves, detail) for detail in (4, 3, 2, 1, 0)]
        unlimited = console.options.update_width(10_000)
        widths = [console.measure(table, options=unlimited).maximum for table in tables]
        fitting = [table for table, width in zip(tables, widths, strict=True) if width <= room]
        console.print((fitting or tables[-1:])[0])
        l0s, fvus = matched(curves)
        found = settings(results.points)
        if l0s:
            console.print(_matched(l0s, fvus, len(by_source(found)) == 1))
        console.print(Text(frontier_line(found)))
        if missed := off_dial(found):
            console.print(Text(missed_line(missed), style="yellow"))
        if wide := too_wide(results):
            line = f"seed similarity: none above {MOST_LATENTS:,} latents ({wide} settings)"
            console.print(Text(line))
    else:
        console.print(Text(f"Sweep {results.sweep}: no run has a result, so there is no plot."))
    _show_missing(results, console)


def _results(sweep: str, curves: Mapping[str, list[Setting]], detail: int) -> Table:
    found = [setting for settings in curves.values() for setting in settings]
    points = [point for setting in found for point in setting.points]
    shown = [(measure, column) for measure, column in columns(points) if column.detail <= detail]
    verdicts = standings(found)
    lines = [*_caption(found, shown, detail), *_of_marks(verdicts, detail)]
    table = Table(title=Text(f"Sweep {sweep}"), caption="\n".join(lines))
    table.caption_justify = "left"
    table.add_column("method")
    for heading in ("k", *(_heading(*pair) for pair in shown), "★"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    judged = iter(verdicts)
    for curve, members in curves.items():
        name = curve
        for setting in members:
            verdict = next(judged)
            if len(found) <= MOST_ROWS or (verdict and MARKS[verdict.standing]):
                cells = [_cell(setting, *pair, detail) for pair in shown]
                table.add_row(Text(name), f"{setting.k:g}", *cells, _mark(verdict, detail))
                name = ""
        table.add_section()
    return table


def _heading(measure: Measure, column: Column) -> str:
    return column.heading or measure.title


def _cell(setting: Setting, measure: Measure, column: Column, detail: int) -> str:
    mean, spread = setting.mean(measure.name), setting.spread(measure.name)
    if mean is None:
        return "-"
    text = format(mean * measure.scale, column.form)
    if spread is None or not column.spread or detail < 2:
        return text
    return f"{text} ±{spread * measure.scale:{column.form}}"


def _mark(verdict: Verdict | None, detail: int) -> str:
    """How a setting stands, and where there is room by how much."""
    if verdict is None:
        return "-"
    gap = "" if verdict.gap is None or detail < 1 else f"{verdict.gap:+.1%}"
    return f"{MARKS[verdict.standing]} {gap}".strip()


def _caption(
    found: Sequence[Setting], shown: Sequence[tuple[Measure, Column]], detail: int
) -> list[str]:
    points = [point for setting in found for point in setting.points]
    held_out = amounts(point.result.evaluation.get("tokens") for point in points)
    lines = [f"dead %: latents without one firing in {held_out} held-out tokens"]
    if detail >= 1:
        window = amounts(point.metrics.get("train_dead_window_tokens") for point in points)
        lines.append(f"train dead %: without one in the last {window} tokens of training")
    lines += [escape(f"{_heading(m, column)}: {column.note}") for m, column in shown if column.note]
    if len(points) > len(found):
        lines.append("means over seeds" + (", ± standard deviation" if detail >= 2 else ""))
    if len(found) > MOST_ROWS:
        lines.append(f"of {len(found)} settings, those with a mark; pareto.csv has all runs")
    return lines


def _of_marks(verdicts: Sequence[Verdict | None], detail: int) -> list[str]:
    """Say what the marks mean that the table has."""
    meant: dict[Standing, str] = {
        "on": "on the frontier, FVU below every other curve's at that L0 by more than the margin",
        "tie": "a tie with the best other curve at that L0, within the margin",
        "unopposed": "unopposed, no other curve comes near that L0",
    }
    there = {verdict.standing for verdict in verdicts if verdict}
    lines = [f"{MARKS[key]}: {text}" for key, text in meant.items() if key in there]
    if told := margins(verdicts):
        gap = "share: FVU beside the best other curve's at that L0; " if detail >= 1 else ""
        lines.append(f"{gap}margin: {told}")
    return lines


def _matched(
    l0s: Sequence[float], fvus: Mapping[str, Sequence[float | None]], comparable: bool
) -> Table:
    table = Table(title="FVU at equal L0, interpolated in log L0")
    table.add_column("method")
    for l0 in l0s:
        table.add_column(f"L0 = {l0:g}", justify="right")
    best = [min(v for v in column if v is not None) for column in zip(*fvus.values(), strict=True)]
    for curve, row in fvus.items():
        cells = [
            Text(
                "-" if fvu is None else f"{fvu:.4f}",
                style="bold" if comparable and fvu == low else "",
            )
            for fvu, low in zip(row, best, strict=True)
        ]
        table.add_row(Text(curve), *cells)
    return table


def _show_missing(results: Results, console: Console) -> None:
    for run, error in list(results.failures.items())[:MOST_FAILURES]:
        console.print(Text(f"failed: {run}: {error}", style="red"), soft_wrap=True)
    if (more := len(results.failures) - MOST_FAILURES) > 0:
        console.print(Text(f"failed: {more} more", style="red"))
    if results.unfinished:
        console.print(Text(f"without a result so far: {len(results.unfinished)} runs"))
