"""The report as one page, `report.html`, which opens without a network.

Plotly draws in the browser, where runs can be filtered and curves be made of any options; the
page holds Plotly's script, ours of `html/`, and the runs' figures as JSON.
"""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sae_sweeps.config.groups import GROUPS
from sae_sweeps.errors import ConfigError
from sae_sweeps.measures import CURVES, Measure, Panel
from sae_sweeps.pareto import curves, words
from sae_sweeps.pareto.measured import PRICE, columns, panels
from sae_sweeps.pareto.points import Results, RunPoint, settings, together
from sae_sweeps.pareto.rows import rows
from sae_sweeps.record import manifest
from sae_sweeps.record.folder import RunFolder, SweepFolder
from sae_sweeps.record.manifest import Manifest
from sae_sweeps.system import files
from sae_sweeps.system.files import digest

PARTS = Path(__file__).parent / "html"
SCRIPTS = ("data.js", "standing.js", "figures.js", "page.js")
MOST_ROWS = 60
"""Points of a training curve; it has as many however long the run is."""
DIGITS = 4
"""Of training curves; figures of results are exact."""
NOT_SHOWN = ("sweep", *(group.name for group in GROUPS if not group.trains))
"""Groups that say nothing about a run's training."""

Sweep = tuple[Path, Results]
"""A sweep's folder, and what was read of it."""


@dataclass(frozen=True)
class Named:
    """A sweep under the name that it has on the page."""

    name: str
    folder: Path
    results: Results
    """Its curves are named by what parts the runs of all sweeps of the page."""
    manifest: Manifest | None


def write(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Write the page of one or several sweeps, of which one at least has a result."""
    from plotly.offline import get_plotlyjs

    content = _content([(folder.absolute(), results) for folder, results in sweeps])
    text = json.dumps(_finite(content), allow_nan=False, separators=(",", ":"))
    parts = {
        "STYLE": (PARTS / "page.css").read_text(encoding="utf-8"),
        "SUBTITLE": html.escape(content["subtitle"]),
        "TITLE": html.escape(content["title"]),
        # Within a script only `<` could end it, or begin a comment.
        "CONTENT": text.replace("<", "\\u003c"),
        "PLOTLY": get_plotlyjs(),
        "SCRIPTS": "\n".join((PARTS / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    page = (PARTS / "page.html").read_text(encoding="utf-8")
    for name, part in parts.items():
        page = page.replace(f"<!--{name}-->", part)
    files.write_text(path, page)


def _content(sweeps: Sequence[Sweep]) -> dict[str, Any]:
    """All that the page shows, for JSON."""
    named = [
        Named(name, folder, results, _manifest(folder))
        for name, (folder, _), results in zip(
            _names(sweeps), sweeps, together([results for _, results in sweeps]), strict=True
        )
    ]
    found = [setting for sweep in named for setting in settings(sweep.results.points)]
    points = [point for setting in found for point in setting.points]
    runs = [run for sweep in named for run in _runs(sweep)]
    options = _telling(_options(points, [run["sweep"] for run in runs]))
    for index, run in enumerate(runs):
        run["options"] = {key: values[index] for key, values in options.items()}
    return {
        "title": ", ".join(sweep.name for sweep in named),
        "subtitle": f"{words.subtitle(points)}  ·  {_made()}",
        "notes": words.notes(found),
        "panels": [_panel(measure, panel) for measure, panel in panels(points)],
        "columns": [measure.name for measure, _ in columns(points)],
        "price": PRICE,
        "training": {measure.name: measure.title for measure, _ in CURVES},
        "options": list(options),
        "group_by": ["sweep", "curve"] if len(named) > 1 else ["curve"],
        "runs": runs,
        "packs": [pack for sweep in named for pack in _packs(sweep)],
        "sweeps": [_sweep(sweep) for sweep in named],
    }


def _names(sweeps: Sequence[Sweep]) -> list[str]:
    """Call each sweep by its name, or by its folder where two have the same."""
    names = [results.sweep for _, results in sweeps]
    return names if len(set(names)) == len(names) else [str(folder) for folder, _ in sweeps]


def _made() -> str:
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, sae-sweeps {version('sae-sweeps')}"


def _panel(measure: Measure, panel: Panel) -> dict[str, Any]:
    return {
        "measure": measure.name,
        "title": measure.full_title,
        "better": measure.better,
        "scale": measure.scale,
        "ranked": measure.ranked,
        "sane": panel.sane,
        "logarithmic": panel.logarithmic,
    }


def _manifest(folder: Path) -> Manifest | None:
    try:
        return manifest.read(folder)
    except ConfigError:  # a launcher of Hydra's own writes none
        return None


def _runs(sweep: Named) -> list[dict[str, Any]]:
    """Of each run its line of `pareto.csv` and what else is drawn; in the order of the CSV."""
    lines = {row["run"]: row for row in rows(sweep.results.points)}
    return [
        {
            "sweep": sweep.name,
            "row": lines[point.run],
            "setting": f"{sweep.name}, {point.curve}: {digest(point.setting)}",
            "source": digest(setting.source),
            "density": point.result.density_histogram,
            "l0s": point.result.l0_histogram,
            "training": _training(SweepFolder(sweep.folder).run(point.run)),
        }
        for setting in settings(sweep.results.points)
        for point in setting.points
    ]


def _options(points: Sequence[RunPoint], sweeps: Sequence[str]) -> dict[str, list[str]]:
    """By what runs can be filtered and curves be made, and every run's value."""
    groups = dict.fromkeys(group for point in points for group in point.result.choices)
    return {
        "sweep": list(sweeps),
        "curve": [point.curve for point in points],
        **{
            group: [point.result.choices.get(group, curves.ABSENT) for point in points]
            for group in groups
            if group not in NOT_SHOWN
        },
        "k": [f"{point.config.k:g}" for point in points],
        **curves.parting([(point.label, point.config) for point in points]),
        "label": [point.label for point in points],
        "seed": [str(point.config.seed) for point in points],
    }


def _telling(options: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Those that part the runs, each otherwise than the ones before; and the curve."""
    kept: dict[str, list[str]] = {}
    partitions = list[list[int]]()
    for key, values in options.items():
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        partition = [places[value] for value in values]
        if key == "curve" or (len(places) > 1 and partition not in partitions):
            partitions.append(partition)
            kept[key] = values
    return kept


def _training(run: RunFolder) -> dict[str, list[float | int]]:
    """Some rows of a run's metrics, as columns; nothing where there is none."""
    found = run.rows(at_most=MOST_ROWS)
    names = [measure.name for measure, _ in CURVES]
    columns: dict[str, list[float | int]] = {
        name: [_rounded(row.figures.get(name, math.nan)) for row in found]
        for name in names
        if any(name in row.figures for row in found)
    }
    return {"tokens": [row.tokens for row in found], **columns}


def _rounded(value: float | int) -> float:
    return float(f"{value:.{DIGITS}g}")


def _packs(sweep: Named) -> list[dict[str, Any]]:
    """What each process cost, as far as its finished runs tell."""
    if sweep.manifest is None:
        return []
    gathered: dict[str, list[RunPoint]] = {}
    for point in sweep.results.points:
        pack = sweep.manifest.pack_of(point.run)
        gathered.setdefault(pack.name if pack else "?", []).append(point)
    return [{"sweep": sweep.name, "name": name, **_cost(runs)} for name, runs in gathered.items()]


def _cost(points: Sequence[RunPoint]) -> dict[str, Any]:
    costs = [point.result.cost for point in points]
    seconds, cpu = (
        max((cost[key] for cost in costs if key in cost), default=None)
        for key in ("seconds", "cpu_seconds")
    )
    device = costs[0].get("device", "?")
    hours = None if seconds is None else seconds / 3600
    return {
        "runs": [point.run for point in points],
        "device": device,
        "tokens_per_s": sum(point.result.tokens for point in points) / seconds if seconds else None,
        "hours": hours,
        "cpu_hours": None if cpu is None else cpu / 3600,
        "gpu_hours": hours if device.startswith("cuda") else None,
    }


def _sweep(sweep: Named) -> dict[str, Any]:
    """What became of the other runs, and how to repeat it all."""
    launches = sweep.manifest.launches if sweep.manifest else []
    keys = ("command", "time", "host", "cwd", "git", "packages")
    return {
        "name": sweep.name,
        "failures": list(sweep.results.failures.items()),
        "unfinished": sweep.results.unfinished,
        "launches": [{key: getattr(launch, key) for key in keys} for launch in launches],
    }


def _finite(node: Any) -> Any:
    """What JSON can hold: null in place of what is no number."""
    if isinstance(node, float):
        return node if math.isfinite(node) else None
    if isinstance(node, Mapping):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    return node
