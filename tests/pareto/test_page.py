"""The page of a report, in a real browser: its figures, its numbers, and that it loads nothing."""

import io
import json
import math
import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from rich.console import Console

from sae_sweeps.measures import Column, Measure, Panel, describe
from sae_sweeps.pareto import page as pages
from sae_sweeps.pareto.frontier import matched, non_dominated
from sae_sweeps.pareto.points import Setting, by_curve, read
from sae_sweeps.pareto.report import report, report_side_by_side
from sae_sweeps.pareto.standing import Verdict, standings
from tests.support.reported import (
    CHROMIUM,
    METHODS,
    dress,
    printed,
    settings_of,
    table,
    write_failure,
    write_sweep,
)

MINUS = "\N{MINUS SIGN}"
WIDE, NARROW = (1500, 1000), (400, 800)
pytestmark = pytest.mark.xdist_group("browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        tell = pytest.fail if os.environ.get("SAE_SWEEPS_NO_SKIPS") else pytest.skip
        tell("no chromium: apt-get install chromium")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


class Opened:
    """A page that has drawn everything, and what went wrong or was asked for meanwhile."""

    def __init__(self, browser: Browser, path: Path, size: tuple[int, int] = WIDE) -> None:
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.tab: Page = browser.new_page(viewport={"width": size[0], "height": size[1]})
        self.tab.on("console", lambda message: self.trouble.append(message.text))
        self.tab.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.on("dialog", lambda dialog: self.trouble.append(f"dialog {dialog.message}"))
        self.url = path.resolve().as_uri()
        self.tab.goto(self.url)
        self.tab.wait_for_selector("body[data-ready]", timeout=60_000)

    def ask(self, script: str) -> Any:
        """The value of an expression in the page, by way of JSON."""
        return json.loads(self.tab.evaluate(f"() => JSON.stringify({script})"))

    def text(self, selector: str) -> str:
        return self.tab.inner_text(selector)

    def traces(self, figure: str, mode: str) -> int:
        """How many traces with points, or lines, really stand in a figure."""
        kind = {"markers": "path.point", "lines": "path.js-line"}[mode]
        return self.tab.locator(f"#{figure} .scatterlayer .trace:has({kind})").count()

    def tick(self, box: str, label: str) -> None:
        """Click a box in one of the folded lists above the figures."""
        self.tab.locator(f"details.filter:has(> summary:text-matches('^{box}:'))").evaluate(
            "node => { node.open = true }"
        )
        details = self.tab.locator(f"details.filter:has(> summary:text-matches('^{box}:'))")
        details.locator(f"label:text-is('{label}') input").click()

    def assert_calm(self) -> None:
        assert self.trouble == []
        assert self.requests == [self.url]

    def close(self) -> None:
        self.assert_calm()
        self.tab.close()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six methods with three seeds, a failure and a run without an end."""
    folder = tmp_path_factory.mktemp("page") / "study"
    write_sweep(folder, seeds=(0, 1, 2))
    dress(folder)
    write_failure(folder, "bad-1", "FloatingPointError: the loss is nan")
    (folder / "runs" / "waiting").mkdir()
    printed(folder)
    return folder


@pytest.fixture
def opened(browser: Browser, sweep: Path) -> Iterator[Opened]:
    page = Opened(browser, sweep / "report.html")
    yield page
    page.close()


# ---------------------------------------------------------------- looks


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_all_figures_stand_and_nothing_is_loaded(
    browser: Browser, sweep: Path, size: tuple[int, int]
) -> None:
    page = Opened(browser, sweep / "report.html", size)
    for panel in range(3):
        assert page.traces(f"pareto-{panel}", "markers") == len(METHODS)
        assert page.traces(f"pareto-{panel}", "lines") == len(METHODS)
    for figure in ("density", "l0", "training"):
        assert page.traces(figure, "lines") == len(METHODS) * 3  # every seed, at one k
    assert page.ask("document.documentElement.scrollWidth") <= size[0]
    boxes = [page.tab.locator(f"#pareto-{panel}").bounding_box() for panel in range(3)]
    tops = {round(box["y"]) for box in boxes if box}
    assert len(tops) == (1 if size == WIDE else 3)
    for said in ("study", "72 runs", "72 of 72 runs are shown", "bad-1", "the loss is nan"):
        assert said in page.text("body")
    assert "waiting" in page.text("#failures")
    page.close()


@pytest.mark.slow
def test_a_point_tells_its_run_and_options(opened: Opened) -> None:
    opened.tab.locator("#pareto-0").scroll_into_view_if_needed()
    point = opened.tab.locator("#pareto-0 .scatterlayer path.point").first
    point.hover(force=True)
    said = opened.tab.locator("#pareto-0 .hoverlayer .hovertext").text_content() or ""
    assert "3 seeds" in said and "-k" in said and "±" in said
    assert "architecture: " in said and "dead latents, % " in said
    stands = r"(dominated|tie|on the frontier): FVU \S+ % beside .* \(margin \S+ %\)"
    assert re.search(stands, said)


# ---------------------------------------------------------------- numbers


def test_its_numbers_are_those_of_the_csv(opened: Opened, sweep: Path) -> None:
    shown = opened.ask("content.runs.map(run => run.row)")
    rows = table(sweep)
    assert [row["run"] for row in shown] == [row["run"] for row in rows]
    for ours, line in zip(shown, rows, strict=True):
        for column, text in line.items():
            value = ours.get(column)
            same = text == "" if value is None else text == str(value)
            assert same or float(text) == value, column


@pytest.mark.slow
def test_its_frontier_is_that_of_the_csv(opened: Opened, sweep: Path) -> None:
    rows = {row["run"]: row for row in table(sweep)}
    assert len({row["standing"] for row in rows.values()}) > 2
    script = """[...standings(curvesOf(content.runs, ["curve"]))].flatMap(([setting, verdict]) =>
        setting.runs.map(run => [run.row.run, verdict]))"""
    told = opened.ask(script)
    assert {run for run, _ in told} == set(rows)
    for run, verdict in told:
        row = rows[run]
        assert (verdict["standing"], verdict["rival"] or "") == (
            row["standing"],
            row["frontier_rival"],
        )
        for key in ("gap", "margin"):
            known = row[f"frontier_{key}"]
            assert verdict[key] == (pytest.approx(float(known), abs=1e-12) if known else None)
    headings = opened.tab.locator("#runs th").all_inner_texts()
    place = headings.index("standing")
    assert headings[place + 1 : place + 3] == ["gap, %", "dead_frac"]  # the price is beside it
    for line in opened.tab.locator("#runs tbody tr").all():
        cells = line.locator("td").all_inner_texts()
        row = rows[cells[0]]
        assert cells[place] == row["standing"]
        if row["frontier_gap"]:
            gap = float(cells[place + 1].replace(MINUS, "-"))
            assert gap == pytest.approx(100 * float(row["frontier_gap"]), rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_what_is_on_the_frontier_is_larger_in_every_panel(opened: Opened, sweep: Path) -> None:
    known = Counter(row["standing"] for row in table(sweep) if row["seed"] == "0")
    looks = opened.ask("Object.fromEntries(Object.entries(LOOKS).map(([k, v]) => [k, v.size]))")
    assert looks["on"] > looks["tie"] > looks["dominated"]
    for panel in range(3):
        sizes = opened.ask(
            f"document.querySelector('#pareto-{panel}').data.flatMap(t => t.marker?.size ?? [])"
        )
        assert Counter(sizes) == {looks[standing]: count for standing, count in known.items()}


def test_its_strict_dominance_is_that_of_python(opened: Opened) -> None:
    rng = random.Random(1)
    for size in (0, 1, 2, 3, 10, 40):
        for _ in range(10):
            xs, ys = ([float(rng.randrange(6)) for _ in range(size)] for _ in range(2))
            points = [[x, y, i] for i, (x, y) in enumerate(zip(xs, ys, strict=True))]
            kept = opened.ask(f"nonDominated({points})")
            marks = non_dominated(xs, ys)
            assert sorted(kept) == [i for i, mark in enumerate(marks) if mark]


def random_settings(rng: random.Random) -> list[Setting]:
    """Settings of several sources, curves and seeds: lone ones, ties, diverged and far-off ones."""
    found = list[Setting]()
    for source in range(rng.choice([1, 1, 2, 3])):
        curves: dict[str, list[tuple[float, list[float]]]] = {}
        most = rng.choice([1, 4])
        for curve in "abcde"[: rng.randrange(1, 6)]:
            level = rng.choice([1.0, 1.0, 1.004, 1.03, 3.0])
            for k in rng.sample([4, 8, 16, 32], rng.choice([1, 1, 2, 4])):
                l0 = k * rng.choice([1.0, 1.0, rng.uniform(0.93, 1.07)])
                fvu = level * 0.5 * l0 ** -rng.choice([0.55, 0.55, 0.2, 0.0])
                seeds = rng.randint(1, most)
                noise = rng.choice([0.0, 0.002, 0.02])
                spot = l0, [fvu * (1 + noise * rng.gauss(0, 1)) for _ in range(seeds)]
                curves.setdefault(curve, []).append(spot)
        found += settings_of(curves, source)
    return found


def as_runs(found: list[Setting]) -> list[dict[str, Any]]:
    """Settings as the page has them."""
    return [
        {
            "row": {"run": point.run, "k": 1, "seed": point.config.seed, **point.metrics},
            "setting": f"{setting.source} {point.setting}",
            "source": setting.source,
            "options": {"curve": setting.curve},
        }
        for setting in found
        for point in setting.points
    ]


def told_of(opened: Opened, cases: list[list[Setting]]) -> list[list[tuple[str, dict[str, Any]]]]:
    """The page's verdicts on settings, by source and first run."""
    script = """(runs => {
        const verdicts = standings(curvesOf(runs, ["curve"]));
        return [...verdicts].map(([{ runs: [{ row, source }] }, verdict]) =>
            [`${source} ${row.run}`, verdict]);
    })"""
    return opened.ask(f"{json.dumps([as_runs(found) for found in cases])}.map({script})")


def known_of(found: list[Setting]) -> dict[str, Verdict | None]:
    """Python's."""
    pairs = zip(found, standings(found), strict=True)
    return {f"{setting.source} {setting.points[0].run}": verdict for setting, verdict in pairs}


def test_its_rule_of_the_frontier_is_that_of_python(opened: Opened) -> None:
    rng = random.Random(2)
    cases = [random_settings(rng) for _ in range(150)]
    seen = Counter[str]()
    for found, ours in zip(cases, told_of(opened, cases), strict=True):
        theirs = known_of(found)
        assert {name for name, _ in ours} == set(theirs)
        for name, verdict in ours:
            assert_equal(verdict, theirs[name])
            seen[verdict["standing"]] += 1
    assert all(seen[standing] > 50 for standing in ("on", "tie", "unopposed", "dominated"))


def test_of_equal_settings_it_says_what_python_says(opened: Opened) -> None:
    """Where all figures are exact: ties without any margin, and which of equal rivals is named."""
    quarter, half = (8.0, [0.25, 0.25]), (8.0, [0.5, 0.5])
    cases = [
        settings_of({"a": [quarter], "b": [quarter]}),
        settings_of({"a": [quarter], "b": [quarter], "c": [(8.0, [0.25])], "d": [quarter]}),
        settings_of({"a": [half], "b": [quarter, (16.0, [0.25])], "c": [(16.0, [0.125])]}),
        settings_of({"a": [(0.0, [1.0])], "b": [(0.0, [1.0]), quarter]}),
    ]
    for found, ours in zip(cases, told_of(opened, cases), strict=True):
        theirs = known_of(found)
        assert dict(ours) == {name: asdict(verdict) for name, verdict in theirs.items() if verdict}


def assert_equal(ours: dict[str, Any], theirs: Verdict | None) -> None:
    """The page's verdict and Python's; where rounding decides, its gap alone."""
    assert theirs is not None
    if theirs.gap is None or theirs.margin is None:
        assert ours == asdict(theirs)
        return
    assert ours["gap"] == pytest.approx(theirs.gap, abs=1e-12)
    assert ours["margin"] == pytest.approx(theirs.margin, abs=1e-12)
    if abs(abs(theirs.gap) - theirs.margin) > 1e-12:
        assert ours["standing"] == theirs.standing
        assert (ours["rival"], ours["seeds"]) == (theirs.rival, theirs.seeds)


@pytest.mark.slow
@pytest.mark.parametrize("measure", ["fvu", "ce_recovered"])
def test_curves_at_equal_l0_with_differences_and_their_spread(
    opened: Opened, sweep: Path, measure: str
) -> None:
    l0s, fvus = matched(by_curve(read(sweep).points))
    found = f'matched(curvesOf(content.runs, ["curve"]), "{measure}")'
    assert opened.ask(f"{found}.l0s") == pytest.approx(l0s, rel=1e-12)
    names = opened.ask('curvesOf(content.runs, ["curve"]).map(curve => curve.name)')
    values = opened.ask(f"{found}.rows.map(row => row.map(cell => cell.value))")
    if measure == "fvu":
        for name, row in zip(names, values, strict=True):
            assert row == pytest.approx(fvus[name], rel=1e-12)
    seeds = {name: by_seed(sweep, name, measure) for name in names}
    title = {"fvu": "FVU", "ce_recovered": "CE recovered"}[measure]
    lines = opened.tab.locator(f"#matched div:has(> h3:text-is('{title}')) tbody tr")
    for index, name in enumerate(names):
        cells = lines.nth(index).locator("td").all_inner_texts()
        assert lines.nth(index).locator("th").inner_text() == name
        for l0, cell, value in zip(l0s, cells, values[index], strict=True):
            assert_cell(cell, value, seeds[name], seeds[names[0]], l0, first=index == 0)


def by_seed(sweep: Path, curve: str, measure: str) -> dict[str, list[tuple[float, float]]]:
    """Each seed's (L0, value) of a curve, from the CSV."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in table(sweep):
        if row["curve"] == curve:
            found.setdefault(row["seed"], []).append((float(row["l0"]), float(row[measure])))
    return {seed: sorted(places) for seed, places in found.items()}


def at(places: list[tuple[float, float]], l0: float) -> float | None:
    """Linear in log L0."""
    for (left, low), (right, high) in pairwise(places):
        if left <= l0 <= right:
            return low + math.log(l0 / left) / math.log(right / left) * (high - low)
    return None


def assert_cell(
    cell: str,
    value: float,
    here: dict[str, list[tuple[float, float]]],
    there: dict[str, list[tuple[float, float]]],
    l0: float,
    first: bool,
) -> None:
    """`0.1145 ± 0.002`, below it the difference likewise, of equal seeds."""
    own, others = ({s: at(p, l0) for s, p in seeds.items()} for seeds in (here, there))
    known = [found for found in own.values() if found is not None]
    top, _, below = cell.partition("\n")
    numbers = [float(text) for text in re.findall(r"[\d.]+(?:e-\d+)?", top)]
    spread = [stdev(known)] if len(known) > 1 else []
    assert numbers == pytest.approx([value, *spread], rel=6e-2, abs=1e-12)
    assert numbers[0] == pytest.approx(value, rel=1e-3)
    if first:
        assert below == ""
        return
    pairs = [o - t for s, o in own.items() if o is not None and (t := others[s]) is not None]
    told = [float(text) for text in re.findall(r"-?[\d.]+(?:e-\d+)?", below.replace(MINUS, "-"))]
    if len(pairs) > 1:
        assert told == pytest.approx([mean(pairs), stdev(pairs)], rel=6e-2)


@pytest.mark.slow
def test_training_curves_are_thinned_to_their_last_row(opened: Opened) -> None:
    training = opened.ask("content.runs.map(run => run.training)")
    for curve in training:
        assert curve["tokens"][-1] == 199_000 and len(curve["tokens"]) <= pages.MOST_ROWS
        assert len(curve["tokens"]) > pages.MOST_ROWS / 2
        assert curve["train/fvu"] == pytest.approx([1000 / t for t in curve["tokens"]], rel=1e-3)
        assert set(curve["train/loss"]) == {None}  # what is no number is none here


@pytest.mark.slow
def test_l0s_add_up_to_all_tokens(opened: Opened) -> None:
    lines = opened.ask("document.querySelector('#l0').data.map(line => [line.x, line.y])")
    shown = opened.ask("content.runs.filter(run => run.row.k === state.k).map(run => run.l0s)")
    assert len(lines) == len(shown) == 18
    for (xs, ys), kept in zip(lines, shown, strict=True):
        counts = kept["counts"]
        upto = [sum(counts[: i + 1]) / sum(counts) for i in range(len(counts))]
        assert xs == [edge - 1 for edge in kept["edges"][1:]]
        assert ys == pytest.approx(upto)


# ---------------------------------------------------------------- controls


@pytest.mark.slow
def test_filters_rule_all_that_is_shown(opened: Opened) -> None:
    opened.tick("architecture", "gated")
    assert "60 of 72 runs are shown" in opened.text("#count")
    assert opened.traces("pareto-0", "markers") == len(METHODS) - 1
    assert opened.tab.locator("#runs tbody tr").count() == 60
    assert "gated" not in opened.text("#runs") and "gated" not in opened.text("#matched")
    opened.tick("k", "32")
    assert "45 of 72 runs are shown" in opened.text("#count")
    opened.tick("architecture", "gated")
    assert "54 of 72 runs are shown" in opened.text("#count")


@pytest.mark.slow
def test_curves_can_be_made_of_any_options(opened: Opened) -> None:
    opened.tick("curves by", "curve")
    assert opened.tab.locator("#legend button").count() == 1
    opened.tick("curves by", "allocator")
    names = opened.tab.locator("#legend button").all_inner_texts()
    allocators = {allocator for _, allocator, _, _ in METHODS.values()}
    assert {re.sub(r"^\W+|\s\d+$", "", name) for name in names} == allocators
    opened.tick("curves by", "seed")
    assert opened.tab.locator("#legend button").count() == 3 * len(allocators)


@pytest.mark.slow
def test_a_curve_can_be_hidden_and_the_frontier_follows(opened: Opened) -> None:
    assert "dominated" in opened.text("#runs")
    for name in opened.tab.locator("#legend button").all()[1:]:
        name.click()
    assert opened.traces("pareto-0", "markers") == 1
    assert "dominated" not in opened.text("#runs")  # there is nobody else any more
    sizes = opened.ask("document.querySelector('#pareto-0').data.at(-1).marker.size")
    assert set(sizes) == {opened.ask("LOOKS.unopposed.size")}
    opened.tab.locator("#legend button").nth(1).click()
    assert opened.traces("pareto-0", "markers") == 2


@pytest.mark.slow
def test_axes_and_dial_and_order_of_runs(opened: Opened) -> None:
    kind = "document.querySelector('#pareto-0')._fullLayout.xaxis.type"
    assert opened.ask(kind) == "log"
    opened.tab.get_by_label("log L0").click()
    assert opened.ask(kind) == "linear"
    first = opened.ask("document.querySelector('#density').data[0].y")
    opened.tab.get_by_label("runs with k").select_option(label="32")
    assert opened.ask("document.querySelector('#density').data[0].y") != first
    opened.tab.get_by_label("training curve of").select_option(label="L0")
    assert set(opened.ask("document.querySelector('#training').data[0].y")) == {8}
    heading = opened.tab.locator("#runs th button", has_text=re.compile("^fvu"))
    heading.click()
    place = opened.tab.locator("#runs th").all_inner_texts().index("fvu ▴")
    shown = opened.tab.locator(f"#runs tbody td:nth-child({place + 1})").all_inner_texts()
    assert [float(text) for text in shown] == sorted(float(text) for text in shown)
    heading.click()
    again = opened.tab.locator(f"#runs tbody td:nth-child({place + 1})").all_inner_texts()
    assert again == shown[::-1]


# ---------------------------------------------------------------- other sweeps


@pytest.mark.slow
def test_what_users_write_is_text(browser: Browser, tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)"></script><script>alert(2)</script>'
    folder = tmp_path / "a<b>&amp;'\""
    results = write_sweep(
        folder, ["relu", "topk"], options=[{"optimizer.lr": evil}, {"optimizer.lr": "<b>x</b>"}]
    )
    dress(folder)
    write_failure(folder, "bad-1", evil)
    told = dict.fromkeys(("name", "command", "cwd", "host", "time"), evil)
    told |= {"git": {"commit": evil, "diff": evil}, "packages": {evil: evil}, "pid": 1}
    told |= {"version": 3, "launcher": {}, "packs": [], "points": [], "earlier": []}
    (folder / "sweep.json").write_text(json.dumps(told))
    printed(folder)
    page = Opened(browser, folder / "report.html")
    assert page.tab.locator("img").count() == 0
    assert page.text("h1") == folder.name and page.tab.title() == folder.name
    assert evil in page.text("#failures") and evil in page.text("#legend")
    page.tab.locator("#pareto-0 .scatterlayer path.point").first.hover(force=True)
    hover = page.tab.locator("#pareto-0 .hoverlayer .hovertext").text_content() or ""
    assert "optimizer.lr: <b>x</b>" in hover
    assert page.tab.locator("#runs tbody tr").count() == len(results)
    assert page.trouble == []
    page.close()


@pytest.mark.slow
def test_a_figure_from_outside_has_a_panel_and_a_column(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write_sweep(folder, ["relu", "topk"])
    gap = Measure("gap", "<b>gap</b>", "%", panel=Panel(logarithmic=True), column=Column())
    for path in sorted((folder / "runs").glob("relu*/result.json")):
        content = json.loads(path.read_text())
        content["metrics"] |= {"gap": 0.5}
        path.write_text(json.dumps(content | {"measures": {"gap": describe(gap)}}))
    printed(folder)
    page = Opened(browser, folder / "report.html")
    assert page.traces("pareto-3", "markers") == 1
    title = page.tab.locator("#pareto-3 .gtitle").text_content()
    assert title == "<b>gap</b>, %"  # neither is better
    assert "log FVU, <b>gap</b>, %" in page.text("#controls")
    place = page.tab.locator("#runs th").all_inner_texts().index("gap")
    cells = page.tab.locator(f"#runs tbody td:nth-child({place + 1})").all_inner_texts()
    assert sorted(cells) == ["0.5"] * 4 + ["\N{EN DASH}"] * 4
    page.close()


@pytest.mark.slow
def test_three_runs_without_more_than_must_be(browser: Browser, tmp_path: Path) -> None:
    write_sweep(tmp_path / "few", ["relu"], ks=(4, 8, 16), measured=False)
    printed(tmp_path / "few")
    page = Opened(browser, tmp_path / "few" / "report.html")
    assert page.tab.locator("#pareto > div").count() == 2  # cross-entropy was not measured
    assert page.traces("pareto-0", "markers") == 1
    assert "one seed only" in page.text("#notes") and "No run failed" in page.text("#failures")
    assert "No L0 is reached" in page.text("#matched")
    assert "The command is not known" in page.text("#repeat")
    page.close()


@pytest.mark.slow
def test_sweeps_side_by_side(browser: Browser, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    write_sweep(folders[0], ["relu", "topk"])
    write_sweep(folders[1], ["relu", "topk"], options=[{"d_sae": 4096}])
    report_side_by_side(folders, tmp_path / "both.html", Console(file=io.StringIO()))
    page = Opened(browser, tmp_path / "both.html")
    assert page.text("h1") == "one, two"
    names = page.ask("curvesOf(content.runs, state.keys).map(curve => curve.name)")
    widths = {"one": 1024, "two": 4096}
    labels = ("relu", "token_choice + aux_k")
    assert set(names) == {
        f"{s} · {label}, d_sae={width}" for s, width in widths.items() for label in labels
    }
    stands = "[...standings(curvesOf(content.runs, state.keys)).values()]"
    rivals = page.ask(f"{stands}.map(verdict => verdict.rival)")
    assert {"one", "two"} == {rival.split(" · ")[0] for rival in rivals if rival}
    page.close()


@pytest.mark.slow
def test_five_hundred_runs(browser: Browser, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    widths = [{"d_sae": width, "optimizer.lr": lr} for width in (1024, 4096) for lr in (1e-3, 3e-3)]
    write_sweep(folder, ks=(4, 8, 12, 16, 24, 32, 64), seeds=(0, 1, 2), options=widths[:4])
    dress(folder)
    printed(folder)
    path = folder / "report.html"
    assert path.stat().st_size < 12_000_000
    page = Opened(browser, path)
    assert "504 of 504 runs are shown" in page.text("#count")
    assert page.traces("pareto-0", "markers") == 24
    took = page.tab.evaluate(
        "async () => { const t = performance.now(); await draw(); return performance.now() - t }"
    )
    assert took < 8000  # ms, on a busy machine
    page.tick("d_sae", "4096")
    assert page.traces("pareto-0", "markers") == 12
    page.close()


def test_a_sweep_without_a_result_gets_no_page(tmp_path: Path) -> None:
    write_failure(tmp_path / "none", "bad-1", "nan")
    report(tmp_path / "none")
    with pytest.raises(Exception, match="no result"):
        report_side_by_side([tmp_path / "none"], tmp_path / "x.html", Console())
    assert not list(tmp_path.rglob("*.html"))
