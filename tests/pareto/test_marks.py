"""How settings stand, as terminal, CSV and picture show it; the page has tests of its own."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sae_sweeps.pareto.frontier import strict_frontier
from sae_sweeps.pareto.points import read, settings
from sae_sweeps.pareto.standing import Verdict, standings
from sae_sweeps.pareto.words import margins
from sae_sweeps.training.measurement import COLUMNS
from tests.support.reported import printed, result, table, write_sweep


def write_every_standing(folder: Path) -> None:
    """Two methods that lie within a few percent of each other, one far off, one that goes on."""
    write_sweep(folder, ["relu", "mutual", "feature"], seeds=(0, 1))
    for path in (folder / "runs").glob("mutual-k32-*/result.json"):
        content = json.loads(path.read_text())
        content["metrics"] |= {"l0": 64.0, "fvu": 0.01}
        path.write_text(json.dumps(content))


def test_the_csv_says_how_each_run_stands(tmp_path: Path) -> None:
    write_every_standing(tmp_path)
    printed(tmp_path)
    rows = {row["run"]: row for row in table(tmp_path)}
    found = settings(read(tmp_path).points)
    strict = strict_frontier(found)
    stands = [verdict for verdict in standings(found) if verdict]
    assert {verdict.standing for verdict in stands} == {"on", "tie", "unopposed", "dominated"}
    for setting, verdict in zip(found, stands, strict=True):
        for point in setting.points:
            row = rows[point.run]
            told = {key: row[f"frontier_{key}"] for key in ("gap", "margin", "seeds", "rival")}
            known = {key: getattr(verdict, key) for key in told}
            assert told == {key: "" if v is None else str(v) for key, v in known.items()}
            assert row["standing"] == verdict.standing
            assert row["frontier"] == str(int(verdict.standing in ("on", "unopposed")))
            assert row["strict_frontier"] == str(int(setting in strict))


def test_no_figure_from_outside_is_called_as_a_column_of_the_csv(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["relu"])
    printed(tmp_path)
    columns = list(table(tmp_path)[0])
    assert {*columns[: columns.index("l0")]} <= {*COLUMNS}


@pytest.mark.parametrize("width", [60, 200])
def test_a_mark_and_its_price_stand_side_by_side(tmp_path: Path, width: int) -> None:
    """Two targets; of the first, `far` gives all lines a slope of -0.0722 per unit of log L0."""
    runs = {
        "a": ("relu", 8.0, 0.19, 0.5),  # the best rival is far's curve: 0.2001
        "b": ("gated", 8.1, 0.2, 0.125),  # a has 0.1891 here
        "near": ("topk", 7.9, 0.201, 0.25),  # a has 0.1909 here
        "far": ("topk", 64.0, 0.05, 0.0),
        "one": ("relu", 8.0, 0.1, 0.75),
        "other": ("gated", 8.0, 0.1005, 0.875),
    }
    for run, (method, l0, fvu, dead) in runs.items():
        options = {"target_model.hook": "second"} if run in ("one", "other") else {}
        content = result(method, round(l0), 0, options, measured=False)
        content["metrics"] |= {"l0": l0, "fvu": fvu, "dead_frac": dead}
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "result.json").write_text(json.dumps(content))
    text = printed(tmp_path, width)
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines()]
    shown = {row[3]: tuple(row[-2:]) for row in rows if len(row) > 5 and row[3]}
    marks = {
        "0.1900": ("50.0", "★ -5.0%"),
        "0.2000": ("12.5", "+5.8%"),
        "0.2010": ("25.0", "+5.3%"),
        "0.0500": ("0.0", "☆"),
        "0.1000": ("75.0", "≈ -0.5%"),
        "0.1005": ("87.5", "≈ +0.5%"),
    }
    if width == 60:  # no room for the gaps
        marks = {fvu: (dead, re.sub(r" ?[-+].*", "", mark)) for fvu, (dead, mark) in marks.items()}
    assert shown == marks
    for said in ("★: on the frontier", "≈: a tie", "☆: unopposed", "margin: 1% (one seed)"):
        assert said in text
    line = "Frontiers of L0 and FVU, one for each target: 1 of 6 settings"
    assert f"{line} (relu, hook=blocks.0.mlp: 1), ties 2" in " ".join(text.split())


def verdict(margin: float, seeds: int) -> Verdict:
    return Verdict("tie", gap=0.0, margin=margin, seeds=seeds, rival="relu")


def test_margins_are_named_with_what_they_rest_on() -> None:
    one = [verdict(0.01, 1), None, Verdict("unopposed")]
    several = [verdict(0.0123, 3), verdict(0.004, 2)]
    assert margins(one) == "1% (one seed)"
    assert margins(several) == "0.4% to 1.23% (two standard errors over seeds)"
    assert margins([*one, *several]) == f"{margins(one)}, {margins(several)}"
    assert margins([None, Verdict("unopposed")]) == ""


def test_the_picture_shows_how_settings_stand(tmp_path: Path) -> None:
    """In every panel each setting has a point of its look, and what matters is drawn last."""
    write_every_standing(tmp_path)
    results = read(tmp_path)
    found = settings(results.points)
    from sae_sweeps.pareto import plot

    sizes = {str(standing): look["ms"] for standing, look in plot.LOOKS.items()}
    assert sizes["on"] > sizes["tie"] > sizes["dominated"]
    expected = Counter[str](v.standing for v in standings(found) if v)
    assert set(expected) == set(sizes)
    figure = plot.figure_of(results)
    for axes in figure.axes:
        drawn = [(str(line.get_gid()), line) for line in axes.lines if line.get_gid()]
        assert Counter(look for look, _ in drawn) == expected
        order = [look for look, _ in drawn]
        assert order == sorted(order, key=list(sizes).index)
        assert all(line.get_markersize() == sizes[look] for look, line in drawn)
    pairs = zip(found, standings(found), strict=True)
    prices = [s.mean("dead_frac") or 0.0 for s, v in pairs if v and v.standing == "on"]
    on_it = [line for line in figure.axes[-1].lines if line.get_gid() == "on"]
    shown = [float(y) for line in on_it for y in np.asarray(line.get_ydata())]
    assert shown == pytest.approx([100 * price for price in prices])
    [legend] = figure.legends
    names = {text.get_text() for text in legend.get_texts()}
    assert {"on the frontier", "tie", "unopposed"} <= names
