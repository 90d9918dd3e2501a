"""tests/gpu/run: what it writes down, whatever its parts do, and where."""

import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from . import agenda, driver, process, wheels
from .agenda import PARTS, TOTAL_S, Part
from .commands import RUN, command
from .driver import RESULTS, Run, place
from .figures import Figures, Goal, Grid
from .installed import KINDS

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


def test_strange_figures_do_no_harm(run: Run) -> None:
    """What is told of a part is for tables too, and these may not be what ends a run."""
    rows: list[dict[str, Any]] = [
        {"ms": None, "what": "a"},
        {"ms": "much", "what": ["a"], "size": {"d": 1}},
        {"error": 5},
        {"ms": 2.5, "what": ["b"]},
    ]
    goal = Goal("a goal", 1, lambda found: found.most("part", "ms"))
    lines = [tells(**row) for row in rows]
    part = said("part", *lines, goals=(goal,), grid=Grid("ms", "what"))
    assert done(run, part)["part"]["figures"] == rows
    assert "2.5" in (run.out / "gpu.txt").read_text()


def test_results_go_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rehearsal's never lie among real ones, unless somebody says so."""
    monkeypatch.delenv("OUT", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert place(None, rehearsal=False) == RESULTS
    assert place(None, rehearsal=True).parent == tmp_path
    monkeypatch.setenv("OUT", "elsewhere")
    assert place(None, rehearsal=True) == place(None, rehearsal=False) == Path("elsewhere")
    assert place(tmp_path, rehearsal=False) == tmp_path


def test_limits_leave_room_for_the_installation() -> None:
    assert sum(part.limit_s for part in PARTS) + INSTALLING_S <= TOTAL_S


def test_figures_are_found_by_what_rows_say() -> None:
    figures = Figures({"part": [{"a": 1, "ms": 2.0}, {"a": 2, "ms": 5.0}, {"a": 1, "ms": 3.0}]})
    assert figures.one("part", "ms", a=1) == 3.0
    assert figures.most("part", "ms") == 5.0
    assert figures.one("part", "ms", a=3) is None
    assert figures.most("other", "ms") is None


# --- The command ----------------------------------------------------------------------------------


def test_missing_wheels_are_told_in_one_line(tmp_path: Path) -> None:
    words = RUN, "--rehearse", "--out", tmp_path, "--wheels", tmp_path / "none"
    ended = command(*words)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "tests/gpu/pack" in line and str(tmp_path / "none") in line


def test_an_unknown_part_is_told_in_one_line(tmp_path: Path) -> None:
    ended = command(RUN, "--only", "rates,stesp", "--out", tmp_path)
    assert ended.returncode == 1
    [line] = ended.stderr.splitlines()
    assert "stesp" in line and "steps" in line
