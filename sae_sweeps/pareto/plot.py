"""Draws a sweep: L0 against FVU, CE recovered, dead latents and whatever else has a panel."""

from collections.abc import Mapping, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

with chdir(Path(__file__).parent):  # where a report is drawn may be a matplotlibrc of a stranger's
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import (
        FixedLocator,
        LogLocator,
        MaxNLocator,
        NullLocator,
        StrMethodFormatter,
    )

from sae_sweeps.measures import Measure, Panel
from sae_sweeps.pareto.measured import panels
from sae_sweeps.pareto.points import Results, Setting, by_curve, settings
from sae_sweeps.pareto.standing import Standing, standings
from sae_sweeps.pareto.words import subtitle

WIDTH, HEIGHT, DPI = 10.0, 3.3, 150
"""Inches for one row of names below the panels, and dots per inch."""
PANELS_IN_WIDTH = 3
"""With more of them the picture is wider."""
# Told apart by the colour-blind too: Okabe and Ito's, less the yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F3C8D", "#5A5A5A")
MARKERS = "osD^vPXphd"
INK, FAINT = "#222222", "#858585"
MOST_NAMES = 20
"""Curves that the legend names; the CSV has all."""

Style = dict[str, Any]
LOOKS: dict[Standing, Style] = {
    "dominated": {"ms": 3.6, "mec": "white", "mew": 0.4},
    "unopposed": {"ms": 4.8, "mfc": "white", "mew": 1.1},
    "tie": {"ms": 5.4, "mec": INK, "mew": 0.6},
    "on": {"ms": 8.4, "mec": INK, "mew": 1.2},
}
"""How points look by their standing in L0 and FVU, in every panel: what matters is drawn last."""
NAMED: dict[Standing, str] = {"on": "on the frontier", "tie": "tie", "unopposed": "unopposed"}


def draw(results: Results, path: Path) -> None:
    """Write the picture of a sweep with at least one result; what no run has gets no panel."""
    figure_of(results).savefig(path)


def figure_of(results: Results) -> Figure:
    """Draw the picture."""
    points, curves = results.points, by_curve(results.points)
    styles, looks = _styles(curves), _looks(settings(points))
    shown = panels(points)
    width = WIDTH * max(1.0, len(shown) / PANELS_IN_WIDTH)
    figure = Figure(figsize=(width, HEIGHT), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    rows = _legend(figure, styles, looks)
    height = HEIGHT + 0.185 * (rows - 1)
    figure.set_size_inches(width, height)
    for axes, pair in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        _draw_panel(axes, *pair, curves, styles, looks)
    bottom, top = (height - HEIGHT + 0.78) / height, 1 - 0.66 / height
    figure.subplots_adjust(0.052, bottom, 0.988, top, wspace=0.19)
    head = 1 - 0.11 / height
    figure.text(0.012, head, results.sweep, size=12, weight="bold", color=INK, va="top")
    figure.text(0.988, head, subtitle(points), size=8.5, color=FAINT, ha="right", va="top")
    return figure


def _looks(found: Sequence[Setting]) -> dict[Standing, list[Setting]]:
    """Gather settings by how they look, in the order in which they are drawn."""
    looks: dict[Standing, list[Setting]] = {standing: [] for standing in LOOKS}
    for setting, verdict in zip(found, standings(found), strict=True):
        looks[verdict.standing if verdict else "dominated"].append(setting)
    return looks


def _styles(curves: Mapping[str, list[Setting]]) -> dict[str, Style]:
    """Give each method a colour, and a marker: its own, or one per curve where it has several."""
    labels: dict[str, list[str]] = {}
    for curve, found in curves.items():
        labels.setdefault(found[0].points[0].label, []).append(curve)
    several = len(labels) < len(curves)
    return {
        curve: {
            "color": COLOURS[method % len(COLOURS)],
            "marker": MARKERS[(variant if several else method) % len(MARKERS)],
        }
        for method, variants in enumerate(labels.values())
        for variant, curve in enumerate(variants)
    }


def _draw_panel(
    axes: Axes,
    measure: Measure,
    panel: Panel,
    curves: Mapping[str, list[Setting]],
    styles: Mapping[str, Style],
    looks: Mapping[Standing, Sequence[Setting]],
) -> None:
    everything = [setting for found in curves.values() for setting in found]
    for curve, found in curves.items():
        if vertices := _vertices(found, measure):
            xs, ys, lows, highs = (list(column) for column in zip(*vertices, strict=True))
            axes.vlines(xs, lows, highs, color=styles[curve]["color"], lw=2.6, alpha=0.4)
            axes.plot(xs, ys, lw=1.2, color=styles[curve]["color"])
    for standing, found in looks.items():
        for setting in found:
            for x, y, *_ in _vertices([setting], measure):
                look = styles[setting.curve] | LOOKS[standing]
                axes.plot([x], [y], lw=0, zorder=3, gid=standing, **look)
    drawn = _vertices(everything, measure)
    _scale_l0(axes, [l0 for l0, *_ in drawn])
    _scale_measure(axes, panel, measure.scale, [end for _, _, *ends in drawn for end in ends])
    low, high = axes.get_ylim()
    shown = sum(low <= mean <= high for _, mean, *_ in drawn)
    hidden = sum(bool(setting.values(measure.name)) for setting in everything) - shown
    notes = [f"{measure.better} is better"] if measure.better else []
    notes += [f"{hidden} hidden"] if hidden else []
    title = measure.full_title + (f"  ({'; '.join(notes)})" if notes else "")
    axes.set_title(title, size=9, color=INK, loc="left", pad=6, parse_math=False)
    axes.set_xlabel("L0: active latents per token, mean", size=8, color=INK, labelpad=2)
    axes.tick_params(labelsize=8, color=FAINT, labelcolor=INK, length=3)
    axes.grid(True, color="#E9E9E9", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)


def _vertices(
    found: Sequence[Setting], measure: Measure
) -> list[tuple[float, float, float, float]]:
    """Give (L0, mean, lowest, highest) over seeds, by L0; a log axis has no place for L0 = 0."""
    vertices: list[tuple[float, float, float, float]] = []
    for setting in found:
        l0, mean = setting.mean("l0"), setting.mean(measure.name)
        values = [value * measure.scale for value in setting.values(measure.name)]
        if l0 is not None and l0 > 0 and mean is not None:
            vertices.append((l0, mean * measure.scale, min(values), max(values)))
    return sorted(vertices)


def _scale_l0(axes: Axes, l0s: Sequence[float]) -> None:
    """Make the axis logarithmic, with powers of two where they are not too many."""
    low, high = (min(l0s), max(l0s)) if l0s else (1.0, 100.0)
    margin = max((high / low) ** 0.06, 1.15)
    axes.set_xscale("log")
    axes.set_xlim(low / margin, high * margin)
    octaves = [2.0**n for n in range(-10, 21) if low / margin <= 2.0**n <= high * margin]
    few = len(octaves) < 10
    axes.xaxis.set_major_locator(FixedLocator(octaves) if few else LogLocator(10))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _scale_measure(axes: Axes, panel: Panel, scale: float, values: Sequence[float]) -> None:
    """Show the sane values, logarithmically where that is asked for and they span much."""
    low, high = (end * scale for end in panel.sane)
    kept = [value for value in values if low <= value <= high] or list(values) or [0.0, 1.0]
    bottom, top = min(kept), max(kept)
    bottom = bottom if panel.floor is None else min(bottom, panel.floor * scale)
    if panel.logarithmic and bottom > 0 and top / bottom > 2.5:
        axes.set_yscale("log")
        axes.set_ylim(bottom / 1.12, top * 1.12)
        subs = (1, 1.5, 2, 3, 5, 7) if top / bottom < 20 else (1, 3)
        axes.yaxis.set_major_locator(LogLocator(10, subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.2g}"))
    else:
        margin = 0.06 * (top - bottom) or 0.05 * abs(top) or 1.0
        axes.set_ylim(bottom - margin, top + margin)
        axes.yaxis.set_major_locator(MaxNLocator(6))


def _legend(
    figure: Figure,
    styles: Mapping[str, Style],
    looks: Mapping[Standing, Sequence[Setting]],
) -> int:
    """Name the curves along the bottom in as few rows as fit, and say how many."""
    look: Style = {"lw": 1.2, "ms": 5.5, "mec": "white", "mew": 0.5}
    named = list(styles)[:MOST_NAMES]
    handles = [Line2D([], [], label=curve, **look, **styles[curve]) for curve in named]
    if len(styles) > len(named):
        handles.append(Line2D([], [], lw=0, label=f"and {len(styles) - len(named)} more"))
    handles += [
        Line2D([], [], lw=0, marker="o", color=FAINT, label=name, **LOOKS[standing])
        for standing, name in NAMED.items()
        if looks[standing]
    ]
    for columns in range(len(handles), 0, -1):
        rows = -(-len(handles) // columns)
        legend = figure.legend(
            handles=[handle for row in range(columns) for handle in handles[row::columns]],
            loc="lower center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=columns,
            fontsize=8.5,
            labelcolor=INK,
            frameon=False,
            columnspacing=1.5,
            handletextpad=0.4,
            borderaxespad=0.25,
        )
        if columns == 1 or legend.get_window_extent().width < 0.99 * figure.get_figwidth() * DPI:
            return rows
        legend.remove()
    return 1
