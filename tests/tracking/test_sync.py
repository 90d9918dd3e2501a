"""The verb `sync`: W&B gets each row of an offline sweep once, and every doubt is told.

The real client uploads to a server on the loopback interface.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.tracking.wandb import log_format, offline, sync
from sae_sweeps.tracking.wandb.pending import Pending
from sae_sweeps.tracking.wandb.server import Served
from sae_sweeps.tracking.wandb.uploading import alone, uploading
from tests.support.fabricate import Slurm, finish, held
from tests.support.fabricate import sweep as fabricated
from tests.support.launches import until
from tests.support.places import ROOT
from tests.support.processes import family, lives
from tests.support.wandb_attempt import STEP
from tests.support.wandb_attempt import row as attempt_row
from tests.support.wandb_backend import HISTORY, SUMMARY, Backend
from tests.support.wandb_offline import read as read_back
from tests.support.wandb_sweeps import (
    Mode,
    Sweep,
    Uploaded,
    backend,
    home,
    served,
    state,
    uploaded,
)

__all__ = ["backend", "home", "uploaded"]  # fixtures


def test_a_sweep_arrives_whole_and_only_once(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep, empty = Sweep(tmp_path / "sweep", 3), Sweep(tmp_path / "empty")
    sweep.train(20, 30, 0)
    sweep.summarise()
    monkeypatch.chdir(sweep.folder / "runs")
    code, line, complaints = uploaded(Path("../../empty"), Path(".."))
    assert (code, complaints) == (0, [])
    assert line.splitlines() == [
        "empty: nothing to upload, there are no W&B runs in its folder",
        "sweep: W&B runs: 4 uploaded",
    ]
    assert not (empty.folder / "wandb").exists()
    for number in range(3):
        run = backend.runs[sweep.id(number)]
        assert served(run) == sweep.rows(number)
        result = json.loads((sweep.run(number).folder / "result.json").read_text())
        assert run.summary["final/l0"] == result["metrics"]["l0"]
        assert run.summary["final/tokens_seen"] == result["tokens"]
        assert (run.entity, run.project, run.exit_code) == ("lab", "saes", 0)
        assert (run.fields["displayName"], run.fields["groupName"]) == (f"s{number}", "sweep")
    summary = backend.runs[(sweep.folder / "wandb_id.txt").read_text().strip()]
    table = json.loads(summary.uploads[summary.summary["runs"]["path"]])
    assert table["data"] == [["s0", 7.5], ["s1", 8.5]]
    assert "CreateArtifact" in backend.requests
    backend.requests.clear()
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 4 there already", [])
    assert {"Viewer", "RunRows"} == set(backend.requests)


@pytest.mark.slow
def test_bad_logs_keep_no_other_from_arriving(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep", 5)
    sweep.train(*[20] * 5)
    for number, size in [(0, 7), (1, 20), (2, 0)]:
        os.truncate(sweep.logs(f"s{number}")[0], size)
    torn = sweep.logs("s3")[0]
    os.truncate(torn, 5000)
    assert 0 < len(read_back(torn.parent).rows) < 20
    (sweep.run(3).folder / "result.json").unlink()  # not over: another attempt goes on
    line = "sweep: W&B runs: 2 uploaded, 3 completed from the runs' folders"
    assert uploaded(sweep.folder) == (0, line, [])
    assert len(backend.runs[sweep.id(3)].rows()) < 20 and backend.runs[sweep.id(3)].exit_code == 1
    for number in (0, 1, 2, 4):
        run = backend.runs[sweep.id(number)]
        assert (served(run), run.exit_code) == (sweep.rows(number), 0)
        assert run.summary["final/l0"] == 7.5
    assert len(list((sweep.folder / "wandb" / offline.ASIDE).glob("*/*.wandb"))) == 3


@pytest.mark.slow
def test_a_log_that_only_wandb_finds_bad_stops_nobody(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep", 3)
    sweep.train(20, 20, 20)
    log = sweep.logs("s1")[0]
    log.write_bytes(b":W&B\xff\xff\xff" + log.read_bytes()[7:])
    code, line, (complaint,) = uploaded(sweep.folder)
    assert (code, line) == (1, "sweep: W&B runs: 2 uploaded, 1 failed")
    assert sweep.id(1) in complaint and "ailed to read" in complaint
    assert all(served(backend.runs[sweep.id(n)]) == sweep.rows(n) for n in (0, 2))


@pytest.mark.slow
def test_attempts_uploaded_between_and_after(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20, failed=True)
    sweep.train(30, checkpoint=10, failed=True)
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 uploaded", [])
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    sweep.train(40, checkpoint=25)
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 uploaded", [])
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    assert len(sweep.rows()) == 40 and len(sweep.logs()) == 3


@pytest.mark.slow
def test_runs_at_work_are_left(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a lock, an open log, what SLURM says, or a launch that will end with the summary."""
    slurm = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{slurm.folder}:{os.environ['PATH']}")
    sweep = Sweep(tmp_path / "sweep", 4)
    shutil.rmtree(sweep.folder)
    fabricated(sweep.folder, [None, None, None, "12_0"])
    slurm.queue("12_0|RUNNING|node|0|None", of=sweep.folder)
    sweep.train(5, 5, 5, 5)
    (sweep.run(3).folder / "result.json").unlink()
    sweep.summarise()
    before = state(sweep.folder / "wandb")
    with (
        held(sweep.run(1).folder / ".lock"),
        held(sweep.folder / ".lock"),
        sweep.logs("s2")[0].open("ab"),
    ):
        code, line, _ = uploaded(sweep.folder)
    assert (code, set(backend.runs)) == (0, {sweep.id(0)})
    assert line == "sweep: W&B runs: 1 uploaded, 4 still written and left for later"
    after = state(sweep.folder / "wandb")
    assert not [path for path in before if "-s0-" not in path and before[path] != after[path]][1:]
    slurm.queue()
    assert uploaded(sweep.folder)[1] == "sweep: W&B runs: 4 uploaded, 1 there already"


@pytest.mark.parametrize(
    ("trouble", "told"),
    [
        ("no key", "no API key for {url}; run `wandb login`, or set WANDB_API_KEY."),
        ("short key", "API key must have 40+ characters"),
        ("dead", "cannot be reached"),
        (401, "refuses the API key; run `wandb login --relogin`, or set WANDB_API_KEY."),
        (503, "answers 503; try later."),
    ],
)
def test_without_a_server_one_line_and_nothing_changed(
    tmp_path: Path,
    backend: Backend,
    uploaded: Uploaded,
    monkeypatch: pytest.MonkeyPatch,
    trouble: object,
    told: str,
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    log = sweep.folder / "wandb/offline-run-20250101_000000-x/run-x.wandb"
    log.parent.mkdir(parents=True)
    log.write_bytes(b":W&B\0\0\0")
    before = state(sweep.folder)
    if trouble == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    elif trouble == "short key":
        monkeypatch.setenv("WANDB_API_KEY", "short")
    elif trouble == "dead":
        backend.stop()
    else:
        backend.refuse = lambda _: int(str(trouble))
    code, line, complaints = uploaded(sweep.folder)
    assert (code, line, len(complaints)) == (1, "", 1)
    assert complaints[0].startswith("sae-sweeps: W&B: ")
    assert told.format(url=backend.url) in complaints[0]
    assert state(sweep.folder) == before


def test_a_folder_that_is_no_sweeps_is_told_before_anything_is_uploaded(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(3)
    code, line, (complaint,) = uploaded(sweep.folder, tmp_path)
    assert (code, line) == (1, "")
    assert complaint == f"sae-sweeps: {tmp_path} is not a sweep's folder: it has no sweep.json."
    assert backend.requests == []


def cut_short(backend: Backend, rows: int) -> None:
    """Have the server take this many rows of a run and nothing more, and say that it took all."""

    def spoil(message: dict[str, Any]) -> None:
        chunk = message.get("files", {}).get(HISTORY, {"offset": 0, "content": []})
        if chunk["offset"] + len(chunk["content"]) > rows:
            del chunk["content"][max(rows - chunk["offset"], 0) :]
            message["files"] = {HISTORY: chunk}

    backend.spoil = spoil


@pytest.mark.slow
@pytest.mark.parametrize("taken", [0, 13])
def test_a_server_that_loses_rows_is_found_out_and_gets_the_rest(
    tmp_path: Path,
    backend: Backend,
    uploaded: Uploaded,
    monkeypatch: pytest.MonkeyPatch,
    taken: int,
) -> None:
    monkeypatch.setattr(sync, "VERIFY_LIMIT_S", 1.5)
    sweep = Sweep(tmp_path / "sweep", 2)
    sweep.train(20, 10)
    cut_short(backend, taken)
    code, line, complaints = uploaded(sweep.folder)
    numbers = [f"the server has {min(taken, count)} of {count} rows" for count in (20, 10)]
    short = [number for number in numbers if number.split()[3] != number.split()[5]]
    assert (code, len(complaints)) == (1, len(short))
    assert line.endswith(f"{len(short)} failed")
    for complaint, number in zip(complaints, short, strict=True):
        assert complaint.endswith(f" is not uploaded whole: {number}")
    backend.spoil = lambda _: None
    assert uploaded(sweep.folder)[::2] == (0, [])
    assert [served(backend.runs[sweep.id(n)]) for n in (0, 1)] == [sweep.rows(0), sweep.rows(1)]
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 2 there already", [])


@pytest.mark.slow
def test_rows_that_are_not_the_first_ones_are_not_added_to(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "VERIFY_LIMIT_S", 0.5)
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20)

    def spoil(message: dict[str, Any]) -> None:
        chunk = message.get("files", {}).get(HISTORY, {"content": []})
        tokens = [json.loads(line)["tokens_seen"] for line in chunk["content"]]
        lines = zip(tokens, chunk["content"], strict=True)
        chunk["content"] = [line for n, line in lines if n not in (4 * STEP, 5 * STEP)]

    backend.spoil = spoil
    assert "has 18 of 20 rows" in uploaded(sweep.folder)[2][0]
    backend.spoil = lambda _: None
    code, _, (complaint,) = uploaded(sweep.folder)
    assert code == 1
    assert complaint.endswith("the server has 18 of 20 rows, and they are not the first ones")
    assert len(backend.runs[sweep.id()].rows()) == 18


@pytest.mark.slow
def test_what_the_server_refuses_is_told_and_repeated(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    """W&B marks such a run as uploaded."""
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20)
    backend.refuse = lambda name: 403 if name.endswith("file_stream") else None
    code, line, (complaint,) = uploaded(sweep.folder)
    assert (code, line) == (1, "sweep: W&B runs: 1 failed")
    assert "Fatal error while uploading data" in complaint
    backend.refuse = lambda _: None
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 uploaded", [])
    assert served(backend.runs[sweep.id()]) == sweep.rows()


@pytest.mark.slow
def test_where_the_server_does_not_tell_nothing_is_claimed_or_risked(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep", 2)
    sweep.train(20, 20)
    offline.hide(offline.read(sweep.logs("s1")[0]))  # as after an upload that was interrupted
    backend.refuse = lambda name: 400 if name == "RunRows" else None
    code, line, (complaint,) = uploaded(sweep.folder)
    assert code == 1
    assert line.endswith("1 uploaded, 1 failed, 1 not verified: the server does not tell")
    assert complaint.endswith("the server may have a part, and does not tell how much")
    assert set(backend.runs) == {sweep.id(0)}


@pytest.mark.slow
def test_a_server_that_takes_nothing_is_given_up(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "PROBE_EVERY_S", 0.2)
    monkeypatch.setattr(sync, "STALL_LIMIT_S", 3.0)
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20)
    backend.refuse = lambda name: 500 if name.endswith("file_stream") else None
    start = time.monotonic()
    code, line, (complaint,) = uploaded(sweep.folder)
    assert (code, line) == (1, "") and "has taken nothing for 3 s" in complaint
    assert time.monotonic() - start < 20
    backend.refuse = lambda _: None
    monkeypatch.setattr(sync, "STALL_LIMIT_S", 60.0)  # a busy machine starts W&B in three seconds
    assert uploaded(sweep.folder)[0] == 0
    assert served(backend.runs[sweep.id()]) == sweep.rows()


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "sae_sweeps", *map(str, words)]


@pytest.mark.slow
@pytest.mark.parametrize("taken", [0, 1, 57, 100])
def test_a_kill_in_the_middle_of_an_upload_costs_and_doubles_nothing(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, taken: int
) -> None:
    sweep = Sweep(tmp_path / "sweep", 2)
    sweep.train(40, 10)
    sweep.train(100, 10, checkpoint=40)
    cut_short(backend, taken)
    taking = {"rows": 0}

    def refuse(name: str) -> int | None:
        rows = sum(len(run.rows()) for run in backend.runs.values())
        taking["rows"] = rows
        return 500 if name.endswith("file_stream") and rows >= taken > 0 else None

    backend.refuse = refuse
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command("sync", sweep.folder), env=environment, start_new_session=True
    )
    until(
        lambda: taking["rows"] >= min(taken, 10) and list(sweep.folder.rglob("*.syncstate")), "rows"
    )
    started = family(process.pid)  # W&B's own process is in a group of its own
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    # It would send on what follows on rows that were lost.
    until(lambda: not any(map(lives, started)), "end of W&B's own process")
    backend.refuse, backend.spoil = (lambda _: None), (lambda _: None)
    code, _, complaints = uploaded(sweep.folder)
    assert (code, complaints) == (0, [])
    assert [served(backend.runs[sweep.id(n)]) for n in (0, 1)] == [sweep.rows(0), sweep.rows(1)]
    assert backend.runs[sweep.id(0)].summary["final/l0"] == 7.5
    assert not (sweep.folder / "wandb" / offline.REST).exists()


@pytest.mark.slow
def test_an_interrupted_summary_and_one_copied_elsewhere_bring_their_tables(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    first, second = Sweep(tmp_path / "first"), Sweep(tmp_path / "second")
    for sweep in (first, second):
        sweep.summarise()
    offline.hide(offline.read(first.logs()[0]))  # as after an upload that was interrupted
    moved = second.folder.rename(tmp_path / "moved")
    code, _, complaints = uploaded(first.folder, moved)
    assert (code, complaints) == (0, [])
    for run in backend.runs.values():
        assert len(run.rows()) == 1
        table = json.loads(run.uploads[run.summary["runs"]["path"]])
        assert table["data"][0] == ["s0", 7.5]
    assert backend.requests.count("CreateArtifact") == 4, "two tables of each sweep"


def test_files_of_tables_are_found_where_the_sweep_lies_now(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.summarise()
    (log,) = Sweep(sweep.folder.rename(tmp_path / "moved")).logs()
    pending = Pending("x", [offline.content(offline.read(log))])
    assert len(pending.logs[0].moved) == 2
    pending.plan(Served())
    ((folder, _),) = pending.folders.items()
    assert folder != log.parent
    written = offline.content(offline.read(folder / log.name))
    assert (written.moved, written.rows, pending.lost()) == ([], 1, [])


@pytest.mark.slow
def test_tables_that_are_lost_are_told(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.summarise()
    shutil.rmtree(sweep.folder / "wandb" / ".data")
    code, line, (complaint,) = uploaded(sweep.folder)
    assert (code, line) == (1, "sweep: W&B runs: 1 failed")
    assert "2 files of its tables are gone, as " in complaint
    assert len(backend.runs) == 1, "the rest of it is uploaded"


@pytest.mark.slow
@pytest.mark.parametrize("unsent", [0, 30])
def test_an_online_run_that_was_killed_is_completed(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, unsent: int
) -> None:
    """An older offline log was uploaded before; where rows are unsent, it is cleaned away."""
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20, failed=True)
    assert uploaded(sweep.folder)[0] == 0
    sweep.train(80, checkpoint=20, mode="online")
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    (log,) = (sweep.folder / "wandb").glob("run-2*/*.wandb")
    log.with_name(f"{log.name}.uploaded").unlink()
    streams = backend.runs[sweep.id()].streams
    for index in range(80 - unsent, 80):
        del streams[HISTORY][index]
    if unsent:  # what comes in one request is taken in at once
        streams[SUMMARY].clear()
        shutil.rmtree(sweep.logs()[0].parent)
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 uploaded", [])
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 there already", [])


@pytest.mark.slow
def test_an_attempt_that_repeats_what_was_cleaned_away_doubles_nothing(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20, failed=True)
    assert uploaded(sweep.folder)[0] == 0
    shutil.rmtree(sweep.logs()[0].parent)  # as `wandb clean` does
    sweep.train(30, checkpoint=10)
    assert len(read_back(sweep.logs()[0].parent).rows) == 30
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 uploaded", [])
    assert served(backend.runs[sweep.id()]) == sweep.rows()


@pytest.mark.slow
def test_a_summary_that_arrived_before_its_rows_misleads_nobody(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    """W&B counts its steps on from the summary's, so that steps are no count of rows."""
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20, failed=True)
    assert uploaded(sweep.folder)[0] == 0
    run = backend.runs[sweep.id()]
    for index in range(8, 20):
        del run.streams[HISTORY][index]
    offline.hide(offline.read(sweep.logs()[0]))
    for count in (20, 30, 40):
        assert uploaded(sweep.folder)[::2] == (0, [])
        assert [row["tokens_seen"] for row in run.rows()] == [STEP * n for n in range(1, count + 1)]
        sweep.train(count + 10, checkpoint=count, failed=True)


@pytest.mark.slow
def test_a_run_begun_apart_takes_the_place_of_what_was_partly_sent(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20, failed=True)
    offline.hide(offline.read(sweep.logs()[0]))  # as after an upload that was interrupted
    sweep.train(30, checkpoint=10)
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 uploaded", [])
    assert set(backend.runs) == {f"{sweep.id()}-offline1"}
    assert served(backend.runs[f"{sweep.id()}-offline1"]) == sweep.rows()


def final(sweep: Sweep, number: int) -> dict[str, Any]:
    """A run's figures as W&B must have them."""
    result = json.loads((sweep.run(number).folder / "result.json").read_text())
    figures = result["metrics"] | {"tokens_seen": result["tokens"]}
    return {f"final/{key}": value for key, value in figures.items() if value is not None}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_what_wandb_was_never_told_comes_from_the_runs_folders(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, mode: Mode
) -> None:
    """Killed after its result, without its last rows, without any log, failed, under way."""
    sweep = Sweep(tmp_path / "sweep", 5)
    sweep.train(20, 20, 20, 20, 20, mode=mode, failed=True)
    finish(sweep.folder, 0, 1, 2)
    (sweep.run(3).folder / "failed.json").write_text('{"error": "NaN"}')
    for number in (1, 2, 3, 4):
        with (sweep.run(number).folder / "metrics.jsonl").open("a") as file:
            file.writelines(f"{attempt_row(index, 5).line}\n" for index in range(21, 31))
    for log in sweep.logs("s2"):
        shutil.rmtree(log.parent)
        backend.runs.pop(sweep.id(2), None)
    line = "4 completed from the runs' folders"
    first = {"offline": f"sweep: W&B runs: 1 uploaded, {line}"}
    first["online"] = f"sweep: W&B runs: 1 there already, {line}"
    assert uploaded(sweep.folder) == (0, first[mode], [])
    for number in range(4):
        run = backend.runs[sweep.id(number)]
        assert served(run) == sweep.rows(number)
        assert run.exit_code == (number == 3)
        shown = {key: value for key, value in run.summary.items() if key.startswith("final/")}
        assert shown == ({} if number == 3 else final(sweep, number))
    assert len(backend.runs[sweep.id(4)].rows()) == 20  # it will tell the rest itself
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 5 there already", [])


@pytest.mark.slow
def test_figures_measured_anew_replace_those_before(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20)
    assert uploaded(sweep.folder)[0] == 0
    path = sweep.run(0).folder / "result.json"
    result = json.loads(path.read_text())
    result["metrics"] |= {"l0": 9.5, "fvu": math.nan}
    path.write_text(json.dumps(result))
    done = "sweep: W&B runs: 1 completed from the runs' folders"
    assert uploaded(sweep.folder) == (0, done, [])
    run = backend.runs[sweep.id()]
    assert (served(run), run.summary["final/l0"]) == (sweep.rows(), 9.5)
    assert uploaded(sweep.folder) == (0, "sweep: W&B runs: 1 there already", [])


@pytest.mark.parametrize("agrees", [True, False])
def test_a_log_that_lost_rows_which_the_server_has(
    tmp_path: Path, backend: Backend, uploaded: Uploaded, agrees: bool
) -> None:
    """The run's own folder tells whether it goes on from there."""
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(20, mode="online", failed=True)
    finish(sweep.folder, 0)
    (log,) = (sweep.folder / "wandb").glob("run-2*/*.wandb")
    log.with_name(f"{log.name}.uploaded").unlink()
    ends = [end for end, _ in log_format.whole_records(log.read_bytes())]
    os.truncate(log, ends[len(ends) // 2])
    left = offline.content(offline.read(log)).rows
    assert 0 < left < 20
    if not agrees:
        path = sweep.run(0).folder / "metrics.jsonl"
        path.write_text("".join(path.read_text().splitlines(True)[1:]))
    code, line, complaints = uploaded(sweep.folder)
    run = backend.runs[sweep.id()]
    if agrees:
        done = "sweep: W&B runs: 1 completed from the runs' folders"
        assert (code, line, complaints) == (0, done, [])
        assert served(run) == sweep.rows()
        assert run.summary["final/l0"] == 7.5
    else:
        assert (code, line) == (1, "sweep: W&B runs: 1 failed")
        assert f"has 20 of {left} rows, so that some are not from here" in complaints[0]
        assert len(run.rows()) == 20


@pytest.mark.slow
def test_what_cannot_be_completed_is_told_and_repeated(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    """Logs that were cleaned away are no reason to send rows again."""
    sweep = Sweep(tmp_path / "sweep", 2)
    sweep.train(20, 20)
    assert uploaded(sweep.folder)[0] == 0
    for log in sweep.logs():
        shutil.rmtree(log.parent)
    with (sweep.run(0).folder / "metrics.jsonl").open("a") as file:
        file.write(f"{attempt_row(21, 5).line}\n")
    backend.refuse = lambda name: 403 if "file_stream" in name and sweep.id(0) in name else None
    code, line, complaints = uploaded(sweep.folder)
    assert (code, line) == (1, "sweep: W&B runs: 1 completed from the runs' folders, 1 failed")
    assert [complaint for complaint in complaints if sweep.id(0) in complaint] == [
        f"sae-sweeps: W&B run {sweep.id(0)} is not uploaded whole: the server did not take what"
        " its folder has and W&B's log lacks"
    ]
    backend.refuse = lambda name: None  # noqa: ARG005
    assert uploaded(sweep.folder)[0] == 0
    assert [served(backend.runs[sweep.id(n)]) for n in range(2)] == [sweep.rows(0), sweep.rows(1)]


def test_two_uploads_of_one_sweep_at_once(
    tmp_path: Path, backend: Backend, uploaded: Uploaded
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(3)
    with held(sweep.folder / "wandb" / ".sync.lock"):
        code, line, (complaint,) = uploaded(sweep.folder)
    assert (code, line) == (1, "")
    assert complaint == f"sae-sweeps: {sweep.folder} is being uploaded by another process."
    assert backend.runs == {}


def test_an_upload_has_a_process_of_its_own(
    tmp_path: Path, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(3)
    monkeypatch.setenv("WANDB_SERVICE", "3-1-unix-nowhere")
    folder = sweep.folder / "wandb"
    with alone(folder) as lock, uploading(folder, [sweep.logs()[0].parent], lock) as (process, _):
        process.wait(30)
    assert served(backend.runs[sweep.id()]) == sweep.rows()


@pytest.mark.slow
def test_the_command_line(tmp_path: Path, backend: Backend) -> None:
    sweep = Sweep(tmp_path / "sweep")
    sweep.train(10)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}

    def run(*folders: str) -> tuple[int, str, str]:
        line = command("sync", *folders)
        done = subprocess.run(
            line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    assert run("sweep") == (0, "sweep: W&B runs: 1 uploaded\n", "")
    assert served(backend.runs[sweep.id()]) == sweep.rows()
    refused = "sae-sweeps: home is not a sweep's folder: it has no sweep.json.\n"
    assert run("sweep", "home") == (1, "", refused)


def test_other_verbs_load_nothing_of_it() -> None:
    code = "import sys\nfrom sae_sweeps.cli import commands\n"
    code += "sys.exit(len({'wandb', 'rich', 'sae_sweeps.tracking'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


@given(st.lists(st.binary(min_size=1, max_size=150), max_size=8))
def test_what_is_written_is_read_back(payloads: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_format, "BLOCK", 64)
        log = log_format.written(payloads, b":W&B\0\0\0")
        assert [payload for _, payload in log_format.whole_records(log)] == payloads
