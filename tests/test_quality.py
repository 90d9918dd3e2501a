"""What the quality benchmark's figures rest on: equal L0, learning rates, one ruler, kept rows."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.benchmarks import quality, quality_report, quality_try
from tests.benchmarks.engine_worker import synthesise
from tests.benchmarks.quality_cases import KS, METHODS, OURS, PEERS, SEEDS, Case, Contender, ours
from tests.benchmarks.quality_measure import RULES, measured
from tests.benchmarks.quality_rows import Bench, Missing, Row, Rows
from tests.benchmarks.quality_search import (
    FACTOR,
    FLAT,
    MOST_RATES,
    NEAR,
    Point,
    best_rate,
    curve_slope,
    matched,
    reached,
    there,
)
from tests.benchmarks.quality_study import Failed, Study
from tests.support.small import small_run, train

L0S = st.floats(1.0, 500.0)
STEPS = 24
"""learning rates on either side of the first one: more than a sweep can reach"""


@given(st.lists(st.tuples(L0S, st.floats(0.01, 1.0)), min_size=2, max_size=8), st.floats(0, 1))
def test_fvu_at_equal_l0_lies_on_the_line_between_neighbours(
    rows: list[tuple[float, float]], share: float
) -> None:
    """As NumPy interpolates between sorted points, in logarithms."""
    rows = [rows[i] for i in np.unique([round(l0, 2) for l0, _ in rows], return_index=True)[1]]
    l0s, fvus = np.array(rows).T
    k = float(
        np.clip(
            math.exp(math.log(l0s[0]) * (1 - share) + math.log(l0s[-1]) * share), l0s[0], l0s[-1]
        )
    )
    expected = math.exp(np.interp(math.log(k), np.log(l0s), np.log(fvus)))
    points = [Point(1.0, *row) for row in reversed(rows)]
    assert matched(points, k) == pytest.approx(expected, rel=1e-6)


@given(st.lists(L0S, min_size=1, max_size=4), L0S, st.floats(-2, -0.1))
def test_a_power_law_is_followed_from_one_side_too(
    l0s: list[float], k: float, slope: float
) -> None:
    """With the slope given, or with that of the points."""
    points = [Point(1.0, l0, 3 * l0**slope) for l0 in l0s]
    assert matched(points, k, slope) == pytest.approx(3 * k**slope)
    if max(l0s) > min(l0s) * 1.01 and not min(l0s) <= k <= max(l0s):
        assert matched(sorted(points, key=lambda p: p.l0)[:: len(l0s) - 1], k) == pytest.approx(
            3 * k**slope
        )


def test_the_slope_of_a_curve_is_that_of_its_points_beside_k() -> None:
    """At the middle the mean of both sides, at an end that of the one; none from one point."""
    curve = {8: Point(8, 8, 0.4), 32: Point(32, 32, 0.2), 64: Point(64, 64, 0.05)}
    assert curve_slope(curve, 8) == pytest.approx(-0.5)
    assert curve_slope(curve, 64) == pytest.approx(-2)
    assert curve_slope(curve, 32) == pytest.approx(-1.25)
    assert curve_slope({8: curve[8]}, 8) is None


@given(st.lists(st.floats(0.01, 1.0) | st.just(math.inf), min_size=2 * STEPS, max_size=2 * STEPS))
def test_a_sweep_never_ends_at_an_edge_unless_it_is_flat(fvus: list[float]) -> None:
    """Whatever the curve: both neighbours of the best were tried, or the last step hardly paid."""
    tried: dict[int, float] = {}

    def fvu(rate: float) -> float:
        step = round(math.log(rate, FACTOR))
        tried[step] = fvus[step + STEPS]
        return tried[step]

    chosen = round(math.log(best_rate(fvu, 1.0), FACTOR))
    lowest = min(tried.values())
    assert len(tried) <= MOST_RATES
    assert tried[chosen] == lowest or tried[chosen] * (1 - FLAT) < lowest
    if len(tried) < MOST_RATES:
        assert chosen - 1 in tried
        assert chosen + 1 in tried


@given(st.integers(-3, 3), st.integers(0, 5))
def test_a_sweep_finds_the_bottom_of_a_valley(start: int, bottom: int) -> None:
    """From either side of it, without trying more than lies between and around."""
    tried: list[float] = []

    def fvu(rate: float) -> float:
        tried.append(rate)
        return 1 + abs(math.log(rate, FACTOR) - bottom)

    assert best_rate(fvu, FACTOR**start) == FACTOR**bottom
    assert len(tried) == len(set(tried)) == max(3, abs(start - bottom) + 3)


@given(
    st.floats(0.3, 2.5),
    st.floats(-0.15, 0.15),
    st.floats(0.03, 30),
    st.sampled_from(KS),
    st.sampled_from([-1.0, 1.0]),
)
def test_trainings_come_to_lie_around_k(
    power: float, bend: float, off: float, k: int, sign: float
) -> None:
    """Whatever the penalty's law, as long as it is one, and however far off the first guess.

    Where the penalty is too weak all 2,000 latents are active, where too strong none.
    """

    def train(dial: float) -> Point:
        x = math.log(dial)
        l0 = k * math.exp(sign * power * (x + bend * math.tanh(x)))
        return Point.of(dial, {"l0": min(l0, 2000.0) if l0 > 0.01 else 0.0, "fvu": 1 / l0})

    points = reached(train, k, off, sign, whole=False)
    assert there(points, k)
    assert matched(points, k) == pytest.approx(1 / k, rel=0.02)


def test_points_far_from_k_do_not_do() -> None:
    """On one side, or too far on either; a very close one does, alone."""
    assert not there([Point(1, 33, 1), Point(2, 34, 1)], 32)
    assert not there([Point(1, 32 * (1 - NEAR) - 1, 1), Point(2, 33, 1)], 32)
    assert there([Point(1, 31, 1), Point(2, 36, 1)], 32)
    assert there([Point(1, 32.5, 1)], 32)


def test_a_search_among_whole_numbers_ends() -> None:
    """Where no dial is close, with the two around."""
    points = reached(lambda dial: Point(dial, 1.07 * dial, 1 / dial), 8, 8, 1.0, whole=True)
    assert [point.dial for point in points] == [8, 7]


def test_a_training_that_fails_ends_a_search() -> None:
    """It is not tried again and again."""
    assert reached({}.get, 8, 8, 1.0, whole=False) == []


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_ruler_measures_as_we_do(method: str, tmp_path: Path) -> None:
    """From what a run of ours exports for SAELens: the figures of its result.json."""
    acts = synthesise(6144, 16).numpy()
    np.save(tmp_path / "train.npy", acts[:4096])
    np.save(tmp_path / "held.npy", acts[4096:])
    data = (
        f"target_model.path={tmp_path}/train.npy",
        f"target_model.held_out_path={tmp_path}/held.npy",
    )
    run = small_run(
        *(tmp_path, f"method={METHODS[method]}", "target_model=activations", *data),
        *("evaluation.tokens=2048", "evaluation.ce_tokens=0"),
    )
    (result,) = train(run)
    assert not isinstance(result, Exception)
    cfg = json.loads((run.files.sae / "cfg.json").read_text())
    weights = load_file(run.files.sae / "sae_weights.safetensors")
    weights["k"] = torch.tensor(cfg.get("k", 0))
    found = measured(cfg["architecture"], weights, torch.from_numpy(acts[4096:]))
    assert found["l0"] == pytest.approx(result.metrics["l0"], rel=1e-3)
    assert found["fvu"] == pytest.approx(result.metrics["fvu"], rel=1e-4)
    assert found["dead_frac"] == pytest.approx(result.metrics["dead_frac"], abs=1 / 64)


def test_rules_differ() -> None:
    """One latent by hand: a gate, a threshold and a budget each close it."""
    w = {name: torch.eye(2) for name in ("W_enc", "W_dec")} | {"b_dec": torch.zeros(2)}
    w |= {name: torch.zeros(2) for name in ("b_enc", "b_mag", "r_mag")}
    w |= {"k": torch.tensor(1), "threshold": torch.tensor([1.5, 0.0])}
    w |= {"b_gate": torch.tensor([0.0, -3.0])}
    x = torch.tensor([[1.0, 2.0]])
    found = {name: rule(w, x).tolist()[0] for name, rule in RULES.items()}
    assert found == {"standard": [1, 2], "topk": [0, 2], "jumprelu": [0, 2], "gated": [1, 0]}
    figures = measured("gated", w, torch.tensor([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]]))
    # The second token is lost: 4 of the 2/3 * 4 + ... that parts from the mean (1, 2/3).
    assert figures == pytest.approx({"l0": 2 / 3, "fvu": 4 / (2 + 8 / 3), "dead_frac": 0.5})


class Counting(Bench):
    """A bench that makes rows up, and counts what it was asked to train."""

    def __init__(self, rows: Rows, law: Callable[[Case], Row]) -> None:
        super().__init__(rows, Path(), Path(), {}, tell=len)
        self.law, self.asked = law, list[str]()

    def _trained(self, case: Case) -> Row:
        self.asked.append(case.key)
        return self.law(case)


def law(case: Case) -> Row:
    """Ours has 0.9 of a peer's FVU, by default 1.8; the lowest at a learning rate of 4e-3."""
    l0 = case.dial
    if case.method in ("relu", "gated", "jumprelu") and case.contender != OURS:
        l0 = 20 / case.dial
    rate = 1.0 if case.lr is None else abs(math.log(case.lr / 4e-3)) / 10
    fvu = (0.9 if case.contender == OURS else 1.0) * (1 + rate) / l0 + 1e-5 * case.seed
    seconds = 5.0 if case.contender == OURS else 50.0
    return {"l0": l0, "fvu": fvu, "dead_frac": 0.004, "cpu_s": seconds}


def peer(name: str, method: str) -> Contender:
    """One of the peers."""
    (found,) = [one for one in PEERS if (one.name, one.method) == (name, method)]
    return found


def test_an_interrupted_benchmark_goes_on(tmp_path: Path) -> None:
    """What was trained for is on the disk at once, and not trained for again."""
    path, contender = tmp_path / "rows.json", peer("saelens", "relu")
    first = Counting(Rows(path), law)

    def interrupted(case: Case) -> Row:
        if len(first.asked) == 4:
            raise KeyboardInterrupt
        return law(case)

    first.law = interrupted
    with pytest.raises(KeyboardInterrupt):
        Study("embedded", contender, first.train).best_rate()
    second = Counting(Rows(path), law)
    quality.carried_out(Study("embedded", contender, second.train))
    assert first.asked[:3] and not set(first.asked[:3]) & set(second.asked)
    assert len(second.asked) == len(set(second.asked))
    third = Counting(Rows(path), law)
    quality.carried_out(Study("embedded", contender, third.train))
    assert third.asked == []


def test_rows_behind_are_read_only(tmp_path: Path) -> None:
    """A trial's rows are kept beside the results, not among them; ours can be forgotten."""
    case = Case("embedded", OURS, "token", 0, 8, None)
    results = Rows(tmp_path / "results.json")
    results.put(case, law(case))
    trial = Rows(tmp_path / "home" / "tried.json", behind=Rows(tmp_path / "results.json"))
    bench = Counting(trial, law)
    bench.train(case)
    other = Case("embedded", OURS, "token", 0, 8, None, ("x=1",))
    bench.train(other)
    assert bench.asked == [other.key]
    assert list(Rows(tmp_path / "home" / "tried.json").found) == [other.key]
    assert list(Rows(tmp_path / "results.json").found) == [case.key]
    results.forget(lambda key: f"/{OURS}/" in key)
    with pytest.raises(Missing):
        Rows(tmp_path / "results.json").row(case)


def measured_by_law(path: Path, law: Callable[[Case], Row]) -> Rows:
    """Rows of all contenders on one set."""
    bench = Counting(Rows(path), law)
    for contender in (*PEERS, *ours()):
        quality.carried_out(Study("embedded", contender, bench.train))
    return bench.rows


def cells(text: str, start: str) -> list[list[str]]:
    """Cells of the table's lines that start so."""
    lines = [line for line in text.splitlines() if line.startswith(f"| {start}")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_table_of_made_up_rows(tmp_path: Path) -> None:
    """Ratios, verdicts and learning rates of a law that is known."""
    whole = quality_report.table(measured_by_law(tmp_path / "rows.json", law))
    text, _, missing = whole.partition("## synthetic")
    verdicts = cells(text, "token")
    assert [line[1] for line in verdicts] == [str(k) for k in KS]
    for line in verdicts:
        # 0.9 * 2 over a peer's 1, by default; 0.9 where both are at their best.
        assert float(line[3]) == pytest.approx(1.8, rel=0.01)
        assert line[4] == "≤ 0.97: no"
        assert float(line[5]) == pytest.approx(0.9, rel=0.06)
        assert line[6:] == ["0.4 / 0.4", "≤ 0.5: yes", "0.10", "≤ 1: yes"]
    assert cells(text, "relu")[0][4] == "≤ 1: no"
    rates = [float(line[1]) for line in cells(text, "saelens")]
    assert rates == [0.004] * 5
    assert {line[1] for line in cells(text, "ours, best rate")[: len(METHODS)]} == {"0.003"}
    assert "not measured yet" in missing
    assert "not measured yet" not in text


def test_what_failed_is_told(tmp_path: Path) -> None:
    """In its row of the table, where all of a contender's failed; else the others are compared."""

    def failing(case: Case) -> Row:
        broken = case.contender == "saelens" and case.method == "mutual"
        too_fast = case.lr is not None and case.lr > 4e-3
        return {"error": "out of luck"} if broken or too_fast else law(case)

    rows = measured_by_law(tmp_path / "rows.json", failing)
    text = quality_report.table(rows)
    assert text.count("failed: out of luck") == 1
    assert cells(text, "mutual")[0][2] == "dictionary_learning"
    assert quality_report.best_peer(rows, "embedded", "mutual")[8] == pytest.approx(1 / 8, rel=0.1)
    with pytest.raises(Failed, match="luck"):
        Study("embedded", peer("saelens", "mutual"), rows.row).best_rate()


def test_a_trial_is_compared_at_equal_l0(tmp_path: Path) -> None:
    """An L0 that is off by a tenth is no merit, with a curve of FVU ~ 1 / L0."""

    def drifting(case: Case) -> Row:
        l0 = case.dial * (1.1 if case.words else 1.0)
        return law(case) | {"l0": l0, "fvu": (0.8 if case.words else 1.0) / l0}

    trial = quality_try.Trial("new", ("x=1",), ["embedded"], ["mutual"], KS, SEEDS[:2])
    bench = Counting(Rows(tmp_path / "rows.json"), drifting)
    quality_try.trained(trial, bench.train, 2)
    lines = quality_try.table(trial, bench.train, {("embedded", "mutual", 8): 0.25})
    (first, *_) = cells("\n".join(lines), "embedded")
    assert first[3:8] == ["0.1250", "0.1000", "0.800", "0.400", "0.500"]
    assert first[8] == "8.00 / 8.80"


def test_every_method_of_a_peer_has_a_verdict() -> None:
    """And none is swept twice under one name."""
    names = [(one.name, one.method) for one in PEERS]
    assert len(names) == len(set(names))
    assert {method for _, method in names} == set(quality_report.WANTED)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    """What is asked for, peers before ours; a mistake is told."""
    given: Any = quality.parsed(["--sets", "embedded", "--methods", "gated"])
    found = [(s.set, s.contender.name) for s in quality.studies(given, law)]
    assert found == [("embedded", name) for name in ("saelens", "dictionary_learning", OURS)]
    given = quality.parsed(["--try", "a", "x=1", "--k", "8", "--only", OURS])
    assert given.trial == ["a", "x=1"] and given.k == [8]
    assert {s.contender.name for s in quality.studies(given, law)} == {OURS}
    with pytest.raises(SystemExit):
        quality.parsed(["--sets", "none"])
    assert "embedded" in capsys.readouterr().err
