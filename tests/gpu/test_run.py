"""tests/gpu/run: what it writes down, whatever its parts do, and a rehearsal of all of them."""

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.support.places import ROOT

from . import agenda, driver, process, wheels
from .agenda import PARTS, TOTAL_S, Part
from .driver import RESULTS, Run
from .figures import Figures, Goal, Grid
from .installed import KINDS, installed

HERE = ROOT / "tests" / "gpu"
ON_CUDA_ALONE = {
    "peak of memory beside the plan's, % off at most",
    "a captured token step of 2,048 latents over an eager one",
}
"""Goals that a CPU has no figure for."""
INSTALLING_S = 10.0


# --- Whatever parts do ---------------------------------------------------------------------


@dataclass(frozen=True)
class Said(Part):
    """A part whose code a test gives."""

    code: str = ""

    def command(self, rehearsal: bool) -> list[str]:
        return [sys.executable, "-c", self.code]


def tells(**figures: Any) -> str:
    return f"print({json.dumps(figures)!r}, flush=True)"


def said(name: str, *lines: str, limit_s: float = 30.0, **more: Any) -> Said:
    return Said(name, limit_s, code="\n".join(lines), **more)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run without parts or wheels, whose document a test looks at."""
    monkeypatch.setattr(driver, "installed", Mock(return_value=dict.fromkeys(KINDS, tmp_path)))
    (tmp_path / wheels.PACKED).write_text("{}")
    return Run([], tmp_path / "out", tmp_path, rehearsal=False)


def done(run: Run, *parts: Part) -> dict[str, Any]:
    """What is told of parts that this run does, by name."""
    run.parts = parts
    run.all()
    document = json.loads((run.out / "gpu.json").read_text())
    return {part["name"]: part for part in document["parts"]}


def test_whatever_a_part_does_is_written_down_and_the_next_goes_on(run: Run) -> None:
    look = (
        "import json, sys",
        f"document = json.load(open({str(run.out / 'gpu.json')!r}))",
        "print(json.dumps({'before': [part['state'] for part in document['parts']]}))",
    )
    found = done(
        run,
        said("sound", tells(what="first", ms=1.5), tells(what="second", ms=2.5)),
        said("raises", tells(ms=1.0), "raise ValueError('no such thing')"),
        said("overruns", tells(ms=2.0), "import time; time.sleep(60)", limit_s=1.0),
        said("rubbish", "print('hello'); print('{\"half\": ')", "print(5)", tells(ms=3.0)),
        said("dies", tells(ms=4.0), "import os; os.kill(os.getpid(), 9)"),
        said("partly", tells(ms=5.0), tells(error="Traceback\nOutOfMemoryError: 5 GB")),
        said("looks", *look),
    )
    assert [row["what"] for row in found["sound"]["figures"]] == ["first", "second"]
    states = [found[name]["state"] for name in found]
    assert states == [
        *(process.DONE, process.FAILED, process.OVER, process.DONE, process.FAILED),
        *(process.IN_PART, process.DONE),
    ]
    assert found["looks"]["figures"] == [{"before": states[:-1]}]
    assert found["raises"]["figures"] == [{"ms": 1.0}]
    assert found["raises"]["error"].strip().endswith("ValueError: no such thing")
    assert found["overruns"]["figures"] == [{"ms": 2.0}]
    assert 1.0 <= found["overruns"]["seconds"] < 20.0
    assert found["rubbish"]["not_figures"] == ["hello", '{"half": ', "5"]
    assert found["dies"]["figures"] == [{"ms": 4.0}]
    table = (run.out / "gpu.txt").read_text()
    for text in ("ValueError: no such thing", "OutOfMemoryError: 5 GB", *found):
        assert text in table


def test_a_part_that_is_over_its_limit_leaves_no_process_behind(run: Run, tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import pathlib, subprocess, time",
        "child = subprocess.Popen(['sleep', '600'])",
        f"pathlib.Path({str(child)!r}).write_text(str(child.pid))",
        "time.sleep(60)",
    )
    assert done(run, said("overruns", *code, limit_s=3.0))["overruns"]["state"] == process.OVER
    pid = int(child.read_text())
    deadline = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended may wait for somebody to ask after it."""
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False


def test_no_part_begins_after_the_total_limit(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "TOTAL_S", 0.0)
    found = done(run, said("late", tells(ms=1.0)))
    assert found["late"]["state"] == process.SKIPPED
    assert found["late"]["figures"] == []


def test_goals_are_judged_and_tabulated(run: Run) -> None:
    def goal(text: str, bound: float, what: str, at_least: bool = False) -> Goal:
        return Goal(text, bound, lambda found: found.one("part", "ms", what=what), at_least)

    goals = (
        goal("at most, met", 2, "a"),
        goal("at most, missed", 1, "a"),
        goal("at least, met", 1, "a", at_least=True),
        goal("at least, missed", 2, "a", at_least=True),
        goal("not there", 1, "b"),
    )
    part = said("part", tells(what="a", ms=1.5, size="x"), goals=goals, grid=Grid("ms", "what"))
    done(run, part)
    judged = json.loads((run.out / "gpu.json").read_text())["goals"]
    assert [goal["verdict"] for goal in judged] == ["met", "missed", "met", "missed", "no figure"]
    table = (run.out / "gpu.txt").read_text()
    assert all(goal.text in table for goal in goals)
    assert agenda.KERNELS in table
    assert "1.5" in table.split(agenda.KERNELS)[1]


def test_what_is_no_number_stands_as_null(run: Run) -> None:
    code = 'print(\'{"ms": NaN, "other": [Infinity, 1.0]}\')'
    assert done(run, said("part", code))["part"]["figures"] == [{"ms": None, "other": [None, 1.0]}]


def test_limits_leave_room_for_the_installation() -> None:
    assert sum(part.limit_s for part in PARTS) + INSTALLING_S <= TOTAL_S


def test_figures_are_found_by_what_rows_say() -> None:
    figures = Figures({"part": [{"a": 1, "ms": 2.0}, {"a": 2, "ms": 5.0}, {"a": 1, "ms": 3.0}]})
    assert figures.one("part", "ms", a=1) == 3.0
    assert figures.most("part", "ms") == 5.0
    assert figures.one("part", "ms", a=3) is None
    assert figures.most("other", "ms") is None


# --- Wheels ----------------------------------------------------------------------------------


def command(*words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """One of the two commands, with this interpreter."""
    given = {name: value for name, value in os.environ.items() if name not in ("OUT", "PYTHONPATH")}
    return subprocess.run(
        [*map(str, words)],
        capture_output=True,
        text=True,
        env={**given, "PYTHON": sys.executable, **more},
    )


def test_missing_wheels_are_told_in_one_line(tmp_path: Path) -> None:
    words = HERE / "run", "--rehearse", "--out", tmp_path, "--wheels", tmp_path / "none"
    ended = command(*words)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "tests/gpu/pack" in line and str(tmp_path / "none") in line


def test_an_unknown_part_is_told_in_one_line(tmp_path: Path) -> None:
    ended = command(HERE / "run", "--only", "rates,stesp", "--out", tmp_path)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "stesp" in line and "steps" in line


# --- A rehearsal ---------------------------------------------------------------------------

slow = [pytest.mark.slow, pytest.mark.xdist_group("gpu_run")]


def rehearsing(test: Any) -> Any:
    """Mark a test that looks at the rehearsal, which one worker does once."""
    for mark in slow:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "wheels"
    ended = command(HERE / "pack", "--into", folder)
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def rehearsal(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """The document and the table."""
    out = tmp_path_factory.mktemp("rehearsal")
    ended = command(HERE / "run", "--rehearse", "--wheels", packed, OUT=str(out))
    assert ended.returncode == 0, ended.stderr
    document = json.loads((out / "gpu.json").read_text())
    assert ended.stdout.startswith((out / "gpu.txt").read_text())
    return document, ended.stdout


@rehearsing
def test_wheels_are_few_and_installed_apart(packed: Path, tmp_path: Path) -> None:
    told = json.loads((packed / wheels.PACKED).read_text())
    assert told["wheels"] == sorted(path.name for path in packed.rglob("*.whl"))
    assert len(told["commit"]) == 40
    folders = installed(packed, tmp_path)
    versions = {
        kind: next(folder.glob("transformer_lens-*.dist-info")).name
        for kind, folder in folders.items()
    }
    assert versions["ours"] > "transformer_lens-4" > versions["peers"]


@rehearsing
def test_every_part_is_rehearsed(rehearsal: tuple[Any, str]) -> None:
    document, _ = rehearsal
    assert document["rehearsal"]
    assert [part["name"] for part in document["parts"]] == [part.name for part in PARTS]
    for part in document["parts"]:
        errors = [row for row in part["figures"] if "error" in row]
        assert part["state"] == process.DONE, (part.get("error"), errors)
        assert part["figures"] and "not_figures" not in part, part


@rehearsing
def test_every_goal_finds_its_figure(rehearsal: tuple[Any, str]) -> None:
    document, printed = rehearsal
    wanted = [goal.text for part in PARTS for goal in part.goals]
    assert [goal["goal"] for goal in document["goals"]] == wanted
    assert {goal["goal"] for goal in document["goals"] if goal["figure"] is None} == ON_CUDA_ALONE
    assert {goal["verdict"] for goal in document["goals"]} == {"not judged"}
    for text in (*wanted, "rehearsal", agenda.KERNELS):
        assert text in printed


@rehearsing
def test_every_method_and_peer_is_timed(rehearsal: tuple[Any, str]) -> None:
    figures = Figures({part["name"]: part["figures"] for part in rehearsal[0]["parts"]})
    for method in (*agenda.ALLOCATED, *agenda.PENALISED):
        rows = figures.rows("steps", method=method, aux=agenda.AS_CONFIGURED)
        assert len(rows) == 3
        assert all(row["ms"] > 0 and row["kernels"] > 0 and row["bfloat16"] for row in rows)
    dead = [row["dead"] for row in figures.rows("steps") if "dead" in row["aux"]]
    assert len(dead) == 3 and min(dead) > 0
    for peer in agenda.PEERS:
        assert {row["autocast"] for row in figures.rows("peers", peer=peer)} == {True, False}
    assert figures.one("sweep", "runs", what="12 runs") == 12


@rehearsing
def test_a_rehearsal_leaves_no_results_where_real_ones_lie(rehearsal: tuple[Any, str]) -> None:
    del rehearsal
    found = RESULTS / "gpu.json"
    assert not found.exists() or not json.loads(found.read_text())["rehearsal"]
