"""Lays out a sweep's runs in a saved W&B workspace: its Pareto curves and its training curves."""

import importlib
import importlib.util
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.measures import CURVES, Measure, Panel, known
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.record.result import Result
from sae_sweeps.system import files
from sae_sweeps.tracking.wandb import offline, places
from sae_sweeps.tracking.wandb.pending import logs
from sae_sweeps.tracking.wandb.server import Server

RUNS_SHOWN = 100
"""In a panel of lines; W&B's own default is 10."""
LEGEND = "${config:label}, k ${config:k}, seed ${config:seed}"


def require() -> None:
    """Make sure that the extra `dashboards` is installed; raises ConfigError if it is not."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        text = "dashboards need one more package: pip install 'sae-sweeps[dashboards]'"
        raise ConfigError(f"W&B: {text}")


def save(folder: Path, name: str, project: str, entity: str, server: Server) -> str:
    """Make or renew the workspace of the sweep `name`.

    Its address is kept in the sweep's folder, so that a repetition renews it: panels, filter and
    name. What was set otherwise in the browser stays; a workspace deleted there is made again.

    Args:
        folder: the sweep's.
        name: the sweep's, by which its runs are grouped.
        project: where its runs are.
        entity: whose they are by their config; empty for what W&B chose.
        server: where W&B is, already found to be usable.

    Returns:
        The workspace's address.

    Raises:
        ConfigError: if the server refuses.
    """
    ws: Any = importlib.import_module("wandb_workspaces.workspaces")
    kept = places.dashboard_file(folder)
    entity = entity or _recorded(folder) or server.entity
    home = f"{server.app_url.rstrip('/')}/{entity}/{project}"
    try:
        workspace = _kept(ws, kept, home, name)
        if workspace is None:
            shown = ws.WorkspaceSettings(x_axis="tokens_seen", max_runs=RUNS_SHOWN)
            workspace = ws.Workspace(entity=entity, project=project, settings=shown)
        workspace.name = name
        workspace.sections = _sections(ws, _drawn(folder))
        workspace.runset_settings = ws.RunsetSettings(filters=[ws.Metric("Group") == name])
        workspace.save()
        url = f"{home}?{urlparse(workspace.url).query}"
    except Exception as error:  # W&B's packages raise what they like
        why = f"{type(error).__name__}: {error}"
        text = f"W&B: {server.url} does not save the workspace: {one_line(why)}"
        raise ConfigError(text) from error
    files.write_text(kept, f"{url}\n")
    return url


def _recorded(folder: Path) -> str:
    """Tell whose the runs are by their logs, as when WANDB_ENTITY was set; empty if by none."""
    found = (offline.read(path) for path in logs(folder))
    return next((offline.content(fragment).run[0] for fragment in found if fragment.begun), "")


def _kept(ws: Any, kept: Path, home: str, name: str) -> Any:
    """Load the workspace that was made before; None without one of this sweep in this project.

    The file may be somebody else's: what it names must still show the sweep, or bear its name.
    """
    url = kept.read_text(encoding="utf-8").strip() if kept.exists() else ""
    if not url.startswith(f"{home}?"):
        return None
    entity, project = home.split("/")[-2:]
    number = parse_qs(urlparse(url).query)["nw"][0]
    with suppress(ValueError):  # it is not there any more
        found = ws.Workspace.from_url(f"https://any/{entity}/{project}?nw={number}")
        shown = re.findall(r"""(["'])(.*?)\1""", str(found.runset_settings.filters))
        if name in (found.name, *(text for _, text in shown)):
            return found
    return None


def _drawn(folder: Path) -> list[tuple[Measure, Panel]]:
    """Give what is drawn over L0: what sweeps usually have, and what else this one's results do."""
    results = list[Result]()
    for run in SweepFolder(folder).runs:
        with suppress(OSError, ValueError):
            results.append(run.result())
    measured = {name for result in results for name in result.metrics}
    return [
        (measure, measure.panel)
        for measure in known(measure for result in results for measure in result.measures)
        if measure.panel is not None and (measure.panel.usual or measure.name in measured)
    ]


def _sections(ws: Any, drawn: Sequence[tuple[Measure, Panel]]) -> Sequence[Any]:
    wr: Any = importlib.import_module("wandb_workspaces.reports.v2")
    l0 = wr.SummaryMetric("final/l0")
    scatters = [
        wr.ScatterPlot(
            title=f"L0 against {measure.name}",
            x=l0,
            y=wr.SummaryMetric(f"final/{measure.name}"),
            log_x=True,
            legend_template=LEGEND,
            **_how(measure, panel),
        )
        for measure, panel in drawn
    ]
    lines = [
        wr.LinePlot(
            title=measure.name,
            x="tokens_seen",
            y=[measure.name],
            log_y=curve.logarithmic,
            legend_template=LEGEND,
            max_runs_to_show=RUNS_SHOWN,
        )
        for measure, curve in CURVES
        if curve.mirrored
    ]
    return [
        ws.Section(name="Pareto curves", panels=scatters, is_open=True),
        ws.Section(name="Means over seeds", panels=_of_the_summary(wr, drawn), is_open=True),
        ws.Section(name="Training", panels=lines, is_open=True),
    ]


def _how(measure: Measure, panel: Panel) -> dict[str, bool]:
    """Tell how it is drawn; the running extremum is the best of the runs up to each L0."""
    logarithmic = {"log_y": True} if panel.logarithmic else {}
    if not measure.ranked:
        return logarithmic
    return logarithmic | {"running_ymax" if measure.better == "higher" else "running_ymin": True}


def _of_the_summary(wr: Any, drawn: Sequence[tuple[Measure, Panel]]) -> Sequence[Any]:
    """Give what the sweep's summary run shows: its line charts and its picture."""
    charts = [
        wr.CustomChart(
            query={"summaryTable": {"tableKey": f"pareto/{measure.name}_table"}},
            chart_name="wandb/lineseries/v0",
            chart_fields={"step": "step", "lineKey": "lineKey", "lineVal": "lineVal"},
            chart_strings={"title": f"L0 against {measure.name}", "xname": "l0"},
        )
        for measure, _ in drawn
    ]
    return [*charts, wr.MediaBrowser(title="pareto.png", media_keys=["pareto"])]
