"""The verb `dashboard`: one saved W&B workspace per sweep, renewed by repetition."""

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import wandb

from sae_sweeps.cli import commands
from sae_sweeps.measures import Measure, Panel, describe
from tests.support import fabricate
from tests.support.wandb_backend import Backend

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
Called = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give W&B a home of its own and no server."""
    monkeypatch.delenv("WANDB_MODE")
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DIR"):
        monkeypatch.setenv(name, str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    with Backend() as backend:
        monkeypatch.setenv("WANDB_BASE_URL", backend.url)
        monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
        yield backend
        wandb.teardown()


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Called:
    """Run the verb; gives its code, what it said and what it complained of."""

    def called(*folders: Path) -> tuple[int, str, list[str]]:
        code = commands.main(["dashboard", *map(str, folders)])
        wandb.teardown()
        said = capsys.readouterr()
        return code, said.out, said.err.splitlines()

    return called


def tracked(folder: Path, entity: str | None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep of one run with `tracking=wandb`."""
    nodes = fabricate.config(0).nodes | {"tracking": {"project": "saes", "entity": entity}}
    config = replace(fabricate.config(0), nodes=nodes)
    with monkeypatch.context() as patch:
        patch.setattr(fabricate, "config", {0: config}.__getitem__)
        return fabricate.sweep(folder, [None])


def panels(view: dict[str, Any], section: str) -> list[dict[str, Any]]:
    """The panels of a section, as type and config."""
    bank = json.loads(view["spec"])["section"]["panelBankConfig"]["sections"]
    (found,) = [part["panels"] for part in bank if part["name"] == section]
    return [{"type": panel["viewType"], **panel["config"]} for panel in found]


def test_a_workspace_shows_the_sweep(
    tmp_path: Path, backend: Backend, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tracked(tmp_path / "sweep", None, monkeypatch)
    code, said, complaints = call(sweep)
    (view,) = backend.views.values()
    number = view["name"].removeprefix("nw-").removesuffix("-v")
    assert (code, complaints) == (0, [])
    assert said == f"{backend.url}/tester/saes?nw={number}\n"
    place = view["entityName"], view["projectName"], view["displayName"], view["type"]
    assert place == ("tester", "saes", "sweep", "project-view")
    scatters = panels(view, "Pareto curves")
    assert [p["type"] for p in scatters] == ["Scatter Plot"] * 3
    assert {p["xAxis"] for p in scatters} == {"summary:final/l0"}
    assert all(p["xAxisLogScale"] and "${config:label}" in p["legendTemplate"] for p in scatters)
    drawn = [
        (p["yAxis"], p.get("yAxisLogScale"), p.get("showMinYAxisLine"), p.get("showMaxYAxisLine"))
        for p in scatters
    ]
    assert drawn == [
        ("summary:final/fvu", True, True, None),
        ("summary:final/ce_recovered", None, None, True),
        ("summary:final/dead_frac", None, None, None),
    ]
    lines = panels(view, "Training")
    assert [(p["xAxis"], p["metrics"]) for p in lines] == [
        ("tokens_seen", [metric]) for metric in ("train/fvu", "train/l0", "features/dead_frac")
    ]
    charts = panels(view, "Means over seeds")
    assert [p["type"] for p in charts] == ["Vega2"] * 3 + ["Media Browser"]
    assert "pareto/fvu_table" in json.dumps(charts[0])
    assert charts[-1]["mediaKeys"] == ["pareto"]
    (runs,) = json.loads(view["spec"])["section"]["runSets"]
    (found,) = runs["filters"]["filters"]
    assert (found["key"], found["op"]) == ({"section": "run", "name": "group"}, "=")
    assert found["value"] == "sweep" and runs["grouping"] == []


def test_another_sweeps_workspace_is_left_alone(
    tmp_path: Path, backend: Backend, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may name anybody's; one with another name since is known by what it shows."""
    sweep, other = (tracked(tmp_path / name, None, monkeypatch) for name in ("sweep", "other"))
    call(sweep)
    (mine,) = backend.views
    backend.views[mine]["displayName"] = "renamed"
    before = dict(backend.views[mine])
    shutil.copy(sweep / "wandb_dashboard.txt", other)
    assert call(other)[0] == 0
    assert len(backend.views) == 2 and backend.views[mine] == before
    assert call(sweep)[0] == 0
    assert len(backend.views) == 2 and backend.views[mine]["displayName"] == "sweep"


def test_it_shows_what_the_results_have_besides(
    tmp_path: Path, backend: Backend, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tracked(tmp_path / "sweep", None, monkeypatch)
    gap = Measure("gap", "gap", better="higher", panel=Panel())
    result = fabricate.result(0) | {"measures": {"gap": describe(gap)}}
    result["metrics"] |= {"gap": 1.0, "true_recovered_frac": 0.5}
    fabricate.write(sweep / "runs/s0/result.json", result)
    fabricate.write(sweep / "runs/torn/result.json", "{")
    assert call(sweep)[0] == 0
    (view,) = backend.views.values()
    drawn = [(p["yAxis"], p.get("showMaxYAxisLine")) for p in panels(view, "Pareto curves")]
    assert drawn == [
        ("summary:final/fvu", None),
        ("summary:final/ce_recovered", True),
        ("summary:final/true_recovered_frac", True),
        ("summary:final/dead_frac", None),
        ("summary:final/gap", True),
    ]
    assert "pareto/gap_table" in json.dumps(panels(view, "Means over seeds")[4])


def test_a_repetition_renews_it(
    tmp_path: Path, backend: Backend, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tracked(tmp_path / "sweep", "lab", monkeypatch)
    _, first, _ = call(sweep)
    ((id, view),) = backend.views.items()
    spec = json.loads(view["spec"])
    spec["section"]["panelBankConfig"]["sections"] = []
    view["spec"] = json.dumps(spec)
    assert call(sweep) == (0, first, [])
    assert list(backend.views) == [id]
    assert backend.views[id]["entityName"] == "lab"
    assert len(panels(backend.views[id], "Training")) == 3
    backend.views.clear()  # deleted in the browser
    code, second, _ = call(sweep)
    assert code == 0 and second != first and len(backend.views) == 1
    assert (sweep / "wandb_dashboard.txt").read_text() == second


def test_the_runs_logs_tell_whose_they_are(
    tmp_path: Path, backend: Backend, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tracked(tmp_path / "sweep", None, monkeypatch)
    wandb.init(project="saes", entity="team", mode="offline", id="x", dir=sweep).finish()
    wandb.teardown()
    assert call(sweep)[1].startswith(f"{backend.url}/team/saes?nw=")
    assert [view["entityName"] for view in backend.views.values()] == ["team"]


def test_what_is_in_the_way_is_told_in_one_line(
    tmp_path: Path, backend: Backend, call: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = tracked(tmp_path / "sweep", None, monkeypatch)
    untracked = fabricate.sweep(tmp_path / "untracked", [None])
    before = sorted(sweep.iterdir())

    def refused(*folders: Path) -> str:
        code, said, (complaint,) = call(*folders)
        assert (code, said) == (1, "")
        return complaint

    assert "without tracking=wandb" in refused(sweep, untracked)
    assert "has no sweep.json" in refused(sweep, tmp_path)
    backend.refuse = lambda name: 400 if name == "UpsertView2" else None
    assert "does not save the workspace" in refused(sweep)
    backend.refuse = lambda _: 401
    assert "refuses the API key" in refused(sweep)
    backend.stop()
    assert "cannot be reached" in refused(sweep)
    monkeypatch.delenv("WANDB_API_KEY")
    assert "no API key" in refused(sweep)
    monkeypatch.setattr(importlib.util, "find_spec", dict[str, None]().get)
    assert refused(sweep).endswith("pip install 'sae-sweeps[dashboards]'")
    assert sorted(sweep.iterdir()) == before and backend.views == {}
