"""The report: its tables, files and curves against `result.json`, for sweeps of all kinds."""

import io
import json
import math
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console

from sae_sweeps.config.options import RunConfig
from sae_sweeps.measures import Column, Measure, Panel, describe
from sae_sweeps.pareto import curves, similarity
from sae_sweeps.pareto.frontier import fvu_at_l0, matched, non_dominated, strict_frontier
from sae_sweeps.pareto.points import RunPoint, Setting, by_curve, read, settings
from sae_sweeps.pareto.report import report
from sae_sweeps.pareto.standing import standings
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.tracking.interface import Summary, TrackedRun, Tracking
from sae_sweeps.tracking.off import Off
from sae_sweeps.training import matching
from tests.support.places import ROOT
from tests.support.reported import (
    base,
    printed,
    result,
    table,
    write_decoder,
    write_failure,
    write_sweep,
)


def point(
    l0: float, fvu: float, seed: int = 0, setting: str | None = None, k: float = 1.0
) -> RunPoint:
    metrics = {"l0": l0, "fvu": fvu}
    config = configured(k=k, d_sae=8, seed=seed)
    made = Result(label="relu", choices={}, config=config, tokens=1, metrics=metrics)
    return RunPoint("run", "relu", setting or f"{l0} {fvu}", metrics, made)


coordinate = st.one_of(
    st.integers(0, 4).map(float), st.floats(allow_infinity=True, allow_nan=True), st.none()
)


@given(st.lists(st.tuples(coordinate, coordinate), max_size=30))
def test_strict_dominance_equals_brute_force(
    places: list[tuple[float | None, float | None]],
) -> None:
    def known(place: tuple[float | None, float | None]) -> bool:
        return all(value is not None and not math.isnan(value) for value in place)

    def beats(one: Any, other: Any) -> bool:
        return one != other and one[0] <= other[0] and one[1] <= other[1]

    expected = [
        known(place) and not any(known(rival) and beats(rival, place) for rival in places)
        for place in places
    ]
    assert non_dominated([x for x, _ in places], [y for _, y in places]) == expected


def test_every_hook_has_a_frontier_of_its_own(tmp_path: Path) -> None:
    """Activations of one hook may be easier than another's, which is no merit of a method."""
    hooks = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")
    write_sweep(tmp_path, ["topk", "relu"], options=[{"target_model.hook": hook} for hook in hooks])
    found = settings(read(tmp_path).points)
    of_hook = {hook: [s for s in found if f"hook={hook}" in s.curve] for hook in hooks}
    assert [len(own) for own in of_hook.values()] == [8, 8]
    kept = strict_frontier(found)
    for own in of_hook.values():
        assert [setting for setting in kept if setting in own] == strict_frontier(own) != []
        of_both = zip(found, standings(found), strict=True)
        assert [verdict for s, verdict in of_both if s in own] == standings(own)
    on = sum(v is not None and v.standing == "on" for v in standings(found))
    words = " ".join(printed(tmp_path).split())
    assert f"Frontiers of L0 and FVU, one for each target: {on} of 16 settings" in words


positive = st.floats(0.5, 1e4, allow_subnormal=False)


@given(st.dictionaries(positive, st.floats(0, 2), min_size=1, max_size=8), positive)
def test_interpolation(curve: dict[float, float], l0: float) -> None:
    points = [point(x, y) for x, y in curve.items()]
    for x, y in curve.items():
        assert fvu_at_l0(points, x) == y
    found = fvu_at_l0(points, l0)
    if not min(curve) <= l0 <= max(curve):
        assert found is None
        return
    left, right = max(x for x in curve if x <= l0), min(x for x in curve if x >= l0)
    low, high = sorted((curve[left], curve[right]))
    assert found is not None and low - 1e-12 <= found <= high + 1e-12


@given(
    st.lists(positive, min_size=2, max_size=6, unique=True),
    st.lists(positive, min_size=2, max_size=10),
)
def test_interpolation_of_a_falling_curve_falls(l0s: list[float], asked: list[float]) -> None:
    falling = [point(x, 1 / x) for x in l0s]
    found = [fvu_at_l0(falling, l0) for l0 in sorted(asked)]
    inside = [fvu for fvu in found if fvu is not None]
    assert all(later <= sooner + 1e-12 for sooner, later in pairwise(inside))


def test_interpolation_is_linear_in_log_l0_between_means_over_seeds() -> None:
    points = [
        point(4.0, 0.5, seed=0, setting="a"),
        point(4.0, 0.3, seed=1, setting="a"),
        point(64.0, 0.1, seed=0, setting="b"),
    ]
    assert fvu_at_l0(points, 16.0) == pytest.approx(0.25, abs=1e-12)
    assert fvu_at_l0(points, 4.0) == pytest.approx(0.4, abs=1e-12)
    assert fvu_at_l0(points, 3.999) is None and fvu_at_l0(points, 64.001) is None
    assert fvu_at_l0([], 4.0) is None


def on_dial(ends: Mapping[float, float]) -> list[Setting]:
    """A curve by its L0s, and the dial's value of each; FVU is 1 / L0."""
    return settings([point(l0, 1 / l0, k=float(k)) for l0, k in ends.items()])


def test_equal_l0_is_compared_where_most_curves_reach() -> None:
    few = {"a": on_dial({4.0: 4, 32.0: 32}), "b": on_dial({3.9: 4, 32.5: 32})}
    apart = few | {"c": on_dial({33.0: 64, 64.0: 64})}  # no L0 is reached by all
    l0s, fvus = matched(apart)
    assert l0s == [4.0, 32.0]
    assert fvus["a"] == [1 / 4, 1 / 32] and fvus["c"] == [None, None]
    assert matched({"a": few["a"]}) == ([], {"a": []})
    assert matched({}) == ([], {})


@given(
    st.lists(
        st.lists(st.floats(0.5, 500).map(lambda l0: round(l0, 3)), min_size=1, max_size=5),
        min_size=2,
        max_size=4,
    )
)
def test_equal_l0s_are_the_dials_and_the_limits_of_what_all_reach(
    curves: list[list[float]],
) -> None:
    dial = [1.0, 4.0, 16.0, 64.0, 256.0]
    found = {
        str(i): on_dial({l0: dial[j] for j, l0 in enumerate(sorted(set(l0s)))})
        for i, l0s in enumerate(curves)
    }
    several = [sorted(set(l0s)) for l0s in curves if len(set(l0s)) > 1]
    asked = {s.k for settings in found.values() for s in settings}
    l0s, fvus = matched(found)
    low = max((l0s[0] for l0s in several), default=0.0)
    high = min((l0s[-1] for l0s in several), default=0.0)
    if several and high > 1.02 * low and len(several) == len(curves):
        assert all(value is not None for row in fvus.values() for value in row)
        assert {k for k in asked if 1.01 * low < k < high / 1.01} <= set(l0s)
        assert low <= l0s[0] <= 1.01 * low and high / 1.01 <= l0s[-1] <= high
        assert all(float(f"{l0:.3g}") == l0 for l0 in (l0s[0], l0s[-1]))
    elif high < low:
        assert set(l0s) <= asked
    enough = max(2, len(curves) // 2 + 1)
    for place in range(len(l0s)):
        assert sum(row[place] is not None for row in fvus.values()) >= enough


def configured(**changed: Any) -> RunConfig:
    """A config that differs from others in these options, `aux_loss` and so on whole."""
    tree = base()
    for key, value in changed.items():
        tree[key] = tree[key] | value if isinstance(value, dict) else value
    return RunConfig.of(tree)


def names(*configs: RunConfig, label: str = "relu") -> list[str]:
    return curves.names([(label, config) for config in configs])


def test_a_curve_is_named_after_what_parts_it_besides_the_dial_and_seeds() -> None:
    def config(k: float, d_sae: int = 8, lr: float = 1e-3, **more: Any) -> RunConfig:
        architecture = {"architecture": {"target_l0": k}} | more
        return configured(
            k=float(k),
            d_sae=d_sae,
            optimizer={"lr": lr},
            aux_loss={"k_aux": d_sae // 2},
            **architecture,
        )

    assert names(config(4), config(8)) == ["relu", "relu"]
    assert names(config(4, seed=0), config(4, seed=1, stream={"seed": 3})) == ["relu", "relu"]
    assert names(config(4), config(4, 16), config(8), config(8, 16)) == [
        "relu, d_sae=8",
        "relu, d_sae=16",
        "relu, d_sae=8",
        "relu, d_sae=16",
    ]
    assert names(config(4), config(4, lr=1e-5)) == ["relu, lr=0.001", "relu, lr=1e-05"]
    assert names(config(4, device="cpu"), config(4, tracking={"mode": "x"})) == ["relu", "relu"]
    coefs = [config(4, architecture={"l1_coef": coef}) for coef in (0.1, 1.0, "auto")]
    assert names(*coefs) == ["relu"] * 3


def test_curves_of_one_method_say_nothing_about_the_others() -> None:
    found = curves.names(
        [
            ("relu", configured(optimizer={"lr": 0.1})),
            ("topk", configured(optimizer={"lr": 0.2})),
            ("topk", configured(optimizer={"lr": 0.3})),
        ]
    )
    assert found == ["relu", "topk, lr=0.2", "topk, lr=0.3"]
    assert sorted(["w, d_sae=1024", "w, d_sae=512"], key=curves.order)[0] == "w, d_sae=512"


def test_seeds_are_averaged_and_stay_apart_from_other_options(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, ["relu"], seeds=(0, 1), options=[{"d_sae": 8}, {"d_sae": 16}])
    found = by_curve(read(tmp_path).points)
    assert list(found) == ["relu, d_sae=8", "relu, d_sae=16"]
    for setting in [setting for curve in found.values() for setting in curve]:
        fvus = [results[point.run]["metrics"]["fvu"] for point in setting.points]
        assert {point.config.seed for point in setting.points} == {0, 1}
        assert setting.mean("fvu") == pytest.approx(sum(fvus) / 2)
        assert setting.spread("fvu") == pytest.approx(abs(fvus[0] - fvus[1]) / math.sqrt(2))


def test_csv_reads_back_as_the_very_numbers_of_result_json(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, seeds=(0, 1))
    printed(tmp_path)
    read_back = table(tmp_path)
    assert {row["run"] for row in read_back} == set(results)
    for row in read_back:
        kept = results[row["run"]]
        for section, prefix in (("metrics", ""), ("batch", "batch_"), ("train", "train_")):
            for key, value in kept[section].items():
                assert float(row[prefix + key]) == value, key
        for key in ("k", "d_sae", "seed", "tokens"):
            assert float(row[key]) == kept[key]
        assert (row["label"], row["architecture"]) == (
            kept["label"],
            kept["choices"]["architecture"],
        )
        assert float(row["cost_tokens_per_s"]) == 41943.04
        assert row["evaluation_tokens"] == "65536"
    for row in read_back:
        assert row["frontier"] <= row["strict_frontier"] <= row["curve_frontier"]


def test_the_report_of_a_sweep(tmp_path: Path) -> None:
    results = write_sweep(tmp_path)
    write_failure(tmp_path, "bad-1", "loss became nan at 4,096 tokens")
    (tmp_path / "runs" / "waiting").mkdir()
    text = printed(tmp_path)
    lines = text.splitlines()
    for kept in results.values():
        cells = (f"{kept['metrics']['l0']:.2f}", f"{kept['metrics']['fvu']:.4f}")
        assert any(all(cell in line for cell in cells) for line in lines)
    for said in ("65,536 held-out tokens", "26,214 tokens of training", "CE recovered", "★"):
        assert said in text
    assert "FVU at equal L0" in text and "L0 = 8" in text
    assert "failed: bad-1: loss became nan at 4,096 tokens" in text
    assert "without a result so far: 1 runs" in text
    assert "token_choice + aux_k" in text and "Frontier of L0 and FVU" in text
    assert "margin: 1% (one seed)" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "pareto.csv",
        "pareto.png",
        "report.html",
        "runs",
    ]


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_the_table_fits_the_terminal_and_keeps_its_numbers(tmp_path: Path, width: int) -> None:
    results = write_sweep(tmp_path, ["relu", "mutual"], seeds=(0, 1, 2))
    text = printed(tmp_path, width)
    assert max(len(line) for line in text.splitlines() if "│" in line) <= width
    assert ("±" in text) == (width == 140)
    fvus = [kept["metrics"]["fvu"] for run, kept in results.items() if "relu-k8-" in run]
    assert f"{sum(fvus) / 3:.4f}" in text


def colours(path: Path) -> set[str]:
    """Give the picture's colours that more than twenty pixels have."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.int64) @ (1 << 16, 1 << 8, 1)
    found, counts = np.unique(pixels, return_counts=True)
    return {f"#{colour:06X}" for colour in found[counts > 20]}


@pytest.mark.slow
def test_the_picture_shows_every_curve(tmp_path: Path) -> None:
    from sae_sweeps.pareto import plot

    write_sweep(tmp_path / "one_seed")
    write_sweep(tmp_path / "three_seeds", seeds=(0, 1, 2))
    write_sweep(tmp_path / "no_model", measured=False)
    for sweep in ("one_seed", "three_seeds", "no_model"):
        printed(tmp_path / sweep)
        path = tmp_path / sweep / "pareto.png"
        with Image.open(path) as image:
            assert image.size[0] == 1500 and 450 < image.size[1] < 560
        assert set(plot.COLOURS[:6]) <= colours(path)


def test_without_a_model_there_is_no_word_of_ce(tmp_path: Path) -> None:
    write_sweep(tmp_path, measured=False)
    recorder = Recorder()
    text = printed(tmp_path, tracking=recorder)
    assert "CE" not in text
    assert "ce_recovered" not in table(tmp_path)[0]
    assert set(recorder.summaries[0].charts) == {"fvu", "dead_frac"}


def test_one_run(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["relu"], ks=[16])
    text = printed(tmp_path)
    assert "equal L0" not in text and "0 of 1 settings, unopposed 1 (relu: 1)" in text
    assert len(table(tmp_path)) == 1
    assert len(colours(tmp_path / "pareto.png")) > 3


def test_odd_values_do_not_spoil_the_picture(tmp_path: Path) -> None:
    for index, (l0, fvu, recovered) in enumerate([(0.0, 1.0, 0.0), (9.0, 40.0, -30.0)]):
        content = result("gated", 64 + index, 0, {}, measured=True)
        content["metrics"] |= {"l0": l0, "fvu": fvu, "ce_recovered": recovered}
        (tmp_path / "runs" / f"odd-{index}").mkdir(parents=True)
        (tmp_path / "runs" / f"odd-{index}" / "result.json").write_text(json.dumps(content))
    printed(tmp_path)  # nothing else than odd values
    write_sweep(tmp_path)
    text = printed(tmp_path)
    assert "40.0000" in text and len(table(tmp_path)) == 26


@pytest.mark.parametrize("failures", [0, 3, 30])
def test_no_result_no_plot(tmp_path: Path, failures: int) -> None:
    (tmp_path / "runs").mkdir()
    for index in range(failures):
        write_failure(tmp_path, f"bad-{index:02}", "out of memory")
    text = printed(tmp_path)
    assert "no run has a result, so there is no plot" in text
    assert text.count("out of memory") == min(failures, 10)
    assert ("20 more" in text) == (failures == 30)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_results_that_cannot_be_read_are_told_and_left_out(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, ["relu"])
    torn, newer, lacking, retried = results
    (tmp_path / "runs" / torn / "result.json").write_text("{")
    newest = json.dumps({**results[newer], "version": 3})
    (tmp_path / "runs" / newer / "result.json").write_text(newest)
    (tmp_path / "runs" / lacking / "result.json").write_text('{"version": 1}')
    (tmp_path / "runs" / retried / "failed.json").write_text('{"error": "of an earlier attempt"}')
    text = printed(tmp_path)
    assert [row["run"] for row in table(tmp_path)] == [retried]
    assert text.count("unreadable") == 3 and "earlier attempt" not in text


@pytest.mark.slow
def test_five_hundred_runs(tmp_path: Path) -> None:
    options = [{"d_sae": 2**power} for power in range(6, 13)]
    write_sweep(tmp_path, ks=[2**n for n in range(6)], seeds=(0, 1), options=options)
    text = printed(tmp_path)
    assert len(table(tmp_path)) == 504
    assert "of 252 settings, those with a mark" in text
    assert len(text.splitlines()) < 200


@final
class Recorder(Tracking):
    """Keeps what a report mirrors."""

    def __init__(self) -> None:
        self.summaries: list[Summary] = []

    def open(self, run: Run) -> TrackedRun:
        return Off()

    def summarise(self, summary: Summary) -> None:
        self.summaries.append(summary)

    def close(self, limit_s: float | None = None) -> None: ...


def test_the_tracker_gets_the_rows_of_the_csv_and_the_curves(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, seeds=(0, 1))
    recorder = Recorder()
    printed(tmp_path, tracking=recorder)
    (summary,) = recorder.summaries
    assert summary.sweep == tmp_path.name and summary.folder == tmp_path
    assert summary.picture == tmp_path / "pareto.png" and summary.picture.exists()
    shown = [{key: "" if v is None else str(v) for key, v in r.items()} for r in summary.rows]
    assert shown == table(tmp_path)
    assert summary.frontier.startswith("Frontier of L0 and FVU: ")
    assert set(summary.charts) == {"fvu", "ce_recovered", "dead_frac"}
    l0s, fvus = summary.charts["fvu"]["gated"]
    kept = [entry["metrics"] for entry in results.values() if entry["label"] == "gated"]
    assert l0s == sorted(l0s) and len(l0s) == 4
    assert sum(fvus) / 4 == pytest.approx(sum(metrics["fvu"] for metrics in kept) / 8)


def test_reporting_twice_changes_nothing(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    first = printed(tmp_path)
    kept = (tmp_path / "pareto.csv").read_bytes(), (tmp_path / "pareto.png").read_bytes()
    assert printed(tmp_path) == first
    assert kept == ((tmp_path / "pareto.csv").read_bytes(), (tmp_path / "pareto.png").read_bytes())


def test_the_report_needs_neither_torch_nor_wandb(tmp_path: Path) -> None:
    for run in write_sweep(tmp_path, ["relu"], seeds=(0, 1)):
        write_decoder(tmp_path, run, np.eye(4))
    script = f"""
import sys
from pathlib import Path
from sae_sweeps.pareto.report import report
assert "matplotlib" not in sys.modules
report(Path({str(tmp_path)!r}))
assert not {{"torch", "wandb", "matplotlib.pyplot"}} & set(sys.modules)
"""
    command = [sys.executable, "-c", script]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    assert {row["seed_similarity"] for row in table(tmp_path)} == {"1.0"}


def test_an_l0_that_misses_its_k_is_named(tmp_path: Path) -> None:
    write_sweep(tmp_path / "sweep", methods=["gated", "topk"], ks=[8, 16])
    for k, l0 in ((8, 24.5), (16, 16.9)):
        [path] = (tmp_path / "sweep").glob(f"runs/gated-k{k}-*/result.json")
        content = json.loads(path.read_text())
        content["metrics"]["l0"] = l0
        path.write_text(json.dumps(content))

    def said() -> str:
        console = Console(width=300, file=io.StringIO())
        report(tmp_path / "sweep", console=console)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    assert "L0 misses k by more than 10% (gated, k 8: 24.5)" in said()
    [path] = (tmp_path / "sweep").glob("runs/gated-k8-*/result.json")
    content = json.loads(path.read_text())
    content["config"]["architecture"]["l1_coef"] = 0.3  # asked for: then L0 is what it is
    path.write_text(json.dumps(content))
    assert "misses k" not in said()


# --- Decoders of different seeds ------------------------------------------------------------


def turned(cosine: float) -> np.ndarray:
    """Rows of which each has this cosine with the same unit vector, and less with all others."""
    return np.eye(6)[:3] * cosine + np.eye(6)[3:] * math.sqrt(1 - cosine**2)


def test_decoders_of_one_setting_are_compared_between_seeds(tmp_path: Path) -> None:
    results = write_sweep(tmp_path, ["topk"], ks=[4, 8], seeds=(0, 1, 2))
    first, second, third, *others = results
    write_decoder(tmp_path, first, 5 * np.eye(6)[:3])
    write_decoder(tmp_path, second, turned(0.8)[::-1])
    write_decoder(tmp_path, third, turned(0.6))
    for run in others[:2]:
        write_decoder(tmp_path, run, np.eye(6))
    (tmp_path / "runs" / others[2] / "checkpoint").mkdir()  # no weights
    text = printed(tmp_path)
    shown = {row["run"]: row["seed_similarity"] for row in table(tmp_path)}
    apart = 0.8 * 0.6 + 0.6 * 0.8  # of the second and the third
    assert float(shown[first]) == pytest.approx((0.8 + 0.6) / 2, abs=1e-6)
    assert float(shown[second]) == pytest.approx((0.8 + apart) / 2, abs=1e-6)
    assert float(shown[third]) == pytest.approx((0.6 + apart) / 2, abs=1e-6)
    assert [shown[run] for run in others] == ["1.0", "1.0", ""]
    assert "seed similarity" in text and f"{(0.8 + 0.6 + apart) / 3:.3f}" in text


def test_similarity_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = list(write_sweep(tmp_path, ["topk"], ks=[4, 8], seeds=(0, 1)))
    for run in results:
        write_decoder(tmp_path, run, turned(0.5))
    compared: list[int] = []

    def counted(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        compared.append(len(one))
        return matching.matched_cosines(one, other)

    monkeypatch.setattr(similarity, "matched_cosines", counted)
    first = printed(tmp_path)
    kept = (tmp_path / "pareto.csv").read_bytes()
    assert printed(tmp_path) == first and (tmp_path / "pareto.csv").read_bytes() == kept
    assert len(compared) == 2
    write_decoder(tmp_path, results[0], turned(0.9))  # trained again
    printed(tmp_path)
    assert len(compared) == 3
    (tmp_path / "seed_similarity.json").write_text('{"torn')
    printed(tmp_path)
    assert len(compared) == 5


@pytest.mark.parametrize("content", [b"", b"{", b"\x08\0\0\0\0\0\0\0{}      "])
def test_damaged_weights_cost_the_similarity_alone(tmp_path: Path, content: bytes) -> None:
    results = list(write_sweep(tmp_path, ["topk"], ks=[4, 8, 16], seeds=(0, 1)))
    for run in results:
        path = write_decoder(tmp_path, run, np.eye(5))
    path.write_bytes(content)  # pyright: ignore[reportPossiblyUnboundVariable]
    write_decoder(tmp_path, results[0], np.full((5, 5), np.nan))
    printed(tmp_path)
    shown = {row["run"]: row["seed_similarity"] for row in table(tmp_path)}
    assert [shown[run] for run in results] == ["", "", "1.0", "1.0", "", ""]


def test_runs_without_replicates_or_on_other_grounds_are_not_compared(tmp_path: Path) -> None:
    grounds = [{"target_model.seed": 0}, {"target_model.seed": 1}]
    for run in write_sweep(tmp_path, ["topk"], ks=[4], options=grounds):
        write_decoder(tmp_path, run, np.eye(4))
    [setting] = settings(read(tmp_path).points)
    assert len(setting.points) == 2
    text = printed(tmp_path)
    assert "similarity" not in text and "seed_similarity" not in table(tmp_path)[0]
    assert not (tmp_path / "seed_similarity.json").exists()


def test_wide_saes_are_not_compared_and_that_is_said(tmp_path: Path) -> None:
    widths = [{"d_sae": similarity.MOST_LATENTS}, {"d_sae": similarity.MOST_LATENTS + 1}]
    for run in write_sweep(tmp_path, ["topk"], ks=[4], seeds=(0, 1), options=widths):
        write_decoder(tmp_path, run, np.eye(4))
    text = printed(tmp_path)
    assert [row["seed_similarity"] for row in table(tmp_path)] == ["1.0", "1.0", "", ""]
    assert "seed similarity: none above 12,288 latents (1 settings)" in text


# --- Columns of some sweeps -----------------------------------------------------------------


def test_further_measures_are_shown_where_there_is_room(tmp_path: Path) -> None:
    for path in (write_sweep(tmp_path, ["relu"]), (tmp_path / "runs").glob("*/result.json"))[1]:
        content = json.loads(path.read_text())
        content["metrics"] |= {"gamma": 0.8125, "underused_frac": 0.375, "kl": 0.4321}
        content["metrics"] |= {"true_recovered_frac": 0.625, "gamma_centred": 0.75}
        path.write_text(json.dumps(content))
    wide, narrow = printed(tmp_path, 220), printed(tmp_path, 80)
    for heading, cell in (("gamma", "0.812"), ("underused %", "37.5"), ("recovered %", "62.5")):
        assert heading in wide and f"{heading}: " in wide and cell in wide
        assert (heading in narrow) == (heading == "recovered %")
    assert "0.4321" not in wide and "kl" not in wide.split()
    assert {float(row["kl"]) for row in table(tmp_path)} == {0.4321}
    assert {float(row["gamma_centred"]) for row in table(tmp_path)} == {0.75}


def describe_gap(folder: Path, **changed: Any) -> None:
    """Give two runs of a sweep a figure from outside, as a measurement would leave it."""
    panel = Panel(sane=(0.0, 2.0), logarithmic=True)
    own = Measure("gap", "gap $to [b]truth", "nats", "lower", 10.0, panel=panel)
    own = replace(own, column=Column("gap [b]", ".2f", note="no [i]markup"))
    for number, path in enumerate(sorted((folder / "runs").glob("relu*/result.json"))[:2]):
        content = json.loads(path.read_text())
        content["metrics"] |= {"gap": 0.25 + number}
        content["measures"] = {"gap": describe(own) | changed}
        path.write_text(json.dumps(content))


def test_figures_from_outside_are_shown_and_absent_where_they_are(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["relu", "topk"])
    recorder = Recorder()
    before = printed(tmp_path, tracking=recorder)
    width, height = size_of(tmp_path / "pareto.png")
    describe_gap(tmp_path)
    text = printed(tmp_path, tracking=recorder)
    assert "gap [b]" in text and "gap [b]: no [i]markup" in text
    assert "2.50" in text and "12.50" in text  # in its unit
    assert text.count(" - ") == before.count(" - ") + 6
    assert [row["gap"] for row in table(tmp_path)].count("") == 6
    plain, described = (set(summary.charts) for summary in recorder.summaries)
    assert described == plain | {"gap"}
    assert len(recorder.summaries[1].charts["gap"]["relu"][0]) == 2
    assert size_of(tmp_path / "pareto.png") == (width * 4 // 3, height)
    shown = content_of(tmp_path / "report.html")
    assert shown["panels"][-1] == {
        "measure": "gap",
        "title": "gap $to [b]truth, nats",
        "better": "lower",
        "scale": 10.0,
        "ranked": True,
        "sane": [0.0, 2.0],
        "logarithmic": True,
    }
    assert "gap" in shown["columns"] and shown["columns"][-1] == shown["price"] == "dead_frac"


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_a_wrong_description_is_told_of_its_run(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["relu", "topk"])
    for wrong in ({"column": {"form": "four"}}, {"panel": {}}, {"panel": 3}):
        describe_gap(tmp_path, **wrong)
        text = printed(tmp_path)
        assert text.count("unreadable") == 2 and len(table(tmp_path)) == 6


def content_of(page: Path) -> dict[str, Any]:
    """All that a page shows."""
    [text] = re.findall(r'id="content">(.*?)</script>', page.read_text())
    return json.loads(text)


def test_the_picture_and_charts_have_what_synthetic_data_tell(tmp_path: Path) -> None:
    write_sweep(tmp_path, ["relu"], measured=False)
    for path in (tmp_path / "runs").glob("*/result.json"):
        content = json.loads(path.read_text())
        content["metrics"] |= {"true_recovered_frac": 0.625}
        path.write_text(json.dumps(content))
    recorder = Recorder()
    printed(tmp_path, tracking=recorder)
    drawn = ["fvu", "true_recovered_frac", "dead_frac"]
    assert list(recorder.summaries[0].charts) == drawn
    panels = content_of(tmp_path / "report.html")["panels"]
    assert [panel["measure"] for panel in panels] == drawn
    assert panels[1]["title"] == "true features recovered, %"


def test_what_cannot_change_the_weights_parts_no_replicates() -> None:
    config = configured(threads=1, checkpoint_minutes=5.0, seed=0)
    later = configured(threads=2, checkpoint_minutes=1.0, seed=1)
    assert curves.setting(config) == curves.setting(later)
    assert curves.names([("topk", config), ("topk", later)]) == ["topk", "topk"]
    assert curves.setting(config) != curves.setting(configured(d_sae=16))
