"""Tracking: the sweep's summary run is renewed while later packs still train."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.launches import Launches, launches, until
from tests.support.slow_model import SLOW_TARGET
from tests.support.wandb_backend import Backend, ServedRun
from tests.support.wandb_offline import read
from tests.support.wandb_place import MAIN, SOON, WORDS, Place

__all__ = ["launches"]  # a fixture

pytestmark = pytest.mark.xdist_group("tracking")

PACKS = [*WORDS, *SLOW_TARGET, "training.tokens=24576", "stream.seed=0,1,2"]
"""Three packs of two runs."""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Backend() as backend:
        yield Place(tmp_path, backend)


def summaries(place: Place) -> list[ServedRun]:
    """The summary runs that the server has."""
    runs = list(place.backend.runs.values())
    return [run for run in runs if run.fields.get("jobType") == "sweep-summary"]


def tables(place: Place) -> list[dict[str, Any]]:
    """All tables of runs that the summary run had, oldest first."""
    found = [(run, row) for run in summaries(place) for row in run.rows()]
    paths = [(run, row["runs"]["path"]) for run, row in found]
    return [json.loads(run.uploads[path]) for run, path in paths if path in run.uploads]


def finished(place: Place) -> set[str]:
    """Runs that have a result."""
    return {path.parent.name for path in (place.folder / "runs").glob("*/result.json")}


def assert_equals(table: dict[str, Any], path: Path) -> None:
    """Every column and row of the table is the file's, to the last digit."""
    with path.open(encoding="utf-8") as file:
        head, *rows = list(csv.reader(file))
    assert table["columns"] == head
    assert len(table["data"]) == len(rows) > 0
    for mine, theirs in zip(table["data"], rows, strict=True):
        for value, text in zip(mine, theirs, strict=True):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            assert value == float(text) if number else ("" if value is None else str(value)) == text


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_summary_has_the_first_packs_before_the_last_ends(
    workers: int, launches: Launches, place: Place
) -> None:
    words = [*PACKS, f"hydra.launcher.workers={workers}"]
    launch = launches.start(place.home, *words, main=MAIN, env=place.env, patches=SOON)
    until(lambda: tables(place), "summary", 60)
    early, ended = tables(place)[0], finished(place)
    assert 2 <= len(early["data"]) < 6 and len(ended) < 6
    assert {row[0] for row in early["data"]} <= ended
    assert (place.folder / "pareto.png").exists()
    assert launch.out.count("Sweep it") == 0
    assert launch.wait() == 0, launch.out + launch.err
    assert launch.out.count("Sweep it") == 1
    assert len(summaries(place)) == 1 and len(finished(place)) == 6
    assert_equals(tables(place)[-1], place.folder / "pareto.csv")
    for other in tables(place):
        assert {row[0] for row in other["data"]} <= finished(place)


@pytest.mark.slow
def test_offline_the_summary_is_renewed_too(launches: Launches, place: Place) -> None:
    place.env["WANDB_MODE"] = "offline"
    assert launches.run(place.home, *PACKS, main=MAIN, env=place.env).code == 0
    folders = sorted((place.folder / "wandb").glob("offline-run-*-it-summary-*"))
    logs = [read(folder) for folder in folders]
    assert [len(log.table("runs")["data"]) for log in logs] == [2, 4, 6]
    assert len({log.fields["id"] for log in logs}) == 1
    assert_equals(logs[-1].table("runs"), place.folder / "pareto.csv")


@pytest.mark.slow
def test_of_failures_alone_there_is_no_summary(launches: Launches, place: Place) -> None:
    """The first pack only has failures, and writes nothing; nor does the second."""
    words = [*PACKS, "optimizer.lr=1e30", "training.gradient_clip_norm=1e30"]
    assert launches.run(place.home, *words, main=MAIN, env=place.env).code == 2
    assert summaries(place) == [] and not list(place.folder.glob("pareto.*"))
