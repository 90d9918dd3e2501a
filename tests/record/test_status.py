"""The states of runs from files, locks and SLURM's word; the verbs status, wait and cancel."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sae_sweeps.cli import commands
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching import cancelling, monitor, progress
from sae_sweeps.record import manifest, status
from sae_sweeps.record.manifest import Pack
from sae_sweeps.system import cluster, files, terminal
from tests.support.fabricate import Slurm, finish, held, launch, result, rows, sweep, write
from tests.support.places import ROOT
from tests.support.unchecked import unchecked


def states(folder: Path) -> list[str]:
    return [run.state for run in status.read(folder).runs]


def only(folder: Path) -> status.RunStatus:
    [run] = status.read(folder).runs
    return run


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """A SLURM that answers what the test says."""
    made = Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{made.folder}:{os.environ['PATH']}")
    return made


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders whose report was drawn."""
    from sae_sweeps.pareto import report

    drawn: list[Path] = []
    monkeypatch.setattr(report, "report", drawn.append)
    return drawn


# --- States --------------------------------------------------------------------------------


def test_the_first_state_that_holds(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    assert only(folder).state == "lost"
    with held(folder / ".lock"):
        assert only(folder).state == "pending"
        with held(folder / "runs/s0/.lock"):
            assert (only(folder).state, only(folder).node) == ("running", socket.gethostname())
            write(folder / "runs/s0/failed.json", {"error": "no", "tokens": 300})
            assert only(folder).state == "failed"
            finish(folder, 0)
            assert only(folder).state == "done"
    assert only(folder).state == "done"


@pytest.mark.parametrize(
    ("job", "state", "reason"),
    [
        ("RUNNING|n1|0|", "running", ""),
        ("COMPLETING|n1|0|", "running", ""),
        ("PENDING||0|Resources", "pending", "Resources"),
        ("PENDING||0|None", "pending", ""),
        ("CONFIGURING|n1|0|", "pending", ""),
        ("PENDING||1|BeginTime", "preempted", "BeginTime"),
        ("REQUEUED||2|", "preempted", ""),
        ("CANCELLED|n1|0|", "lost", "its job ended as CANCELLED"),
        ("NODE_FAIL|n1|1|", "lost", "its job ended as NODE_FAIL"),
        ("FAILED|n1|0|NonZeroExitCode", "lost", "its job ended as FAILED: NonZeroExitCode"),
        ("COMPLETED|n1|0|None", "lost", "its job ended as COMPLETED"),
        (None, "lost", "SLURM does not know its job any more"),
    ],
)
def test_what_slurm_says(
    tmp_path: Path, slurm: Slurm, job: str | None, state: str, reason: str
) -> None:
    folder = sweep(tmp_path / "a", ["12_0"])
    write(folder / "runs/s0/run.log", "of an attempt before this job")
    slurm.queue(*([f"12_0|{job}"] if job else []))
    run = only(folder)
    assert (run.state, run.reason, run.job) == (state, reason, "12_0")
    assert run.node == ("n1" if state == "running" or job == "CONFIGURING|n1|0|" else "")
    assert status.read(folder).jobs == ([] if state == "lost" else ["12_0"])
    with held(folder / "runs/s0/.lock"):
        assert only(folder).state == "running"
    with held(folder / ".lock"):  # another launch plans; it trains nothing of this job's
        assert only(folder).state == state


def test_slurm_is_asked_once_and_only_about_unfinished_runs(tmp_path: Path, slurm: Slurm) -> None:
    folder = sweep(tmp_path / "a", ["7_0", "7_1", "8", None])
    finish(folder, 2, 3)
    slurm.queue("7_0|RUNNING|n1|0|", "7_1|PENDING||0|Priority")
    assert states(folder) == ["running", "pending", "done", "done"]
    [call] = slurm.calls("squeue")
    assert "--jobs=7" in call.split() and not slurm.calls("sacct")
    finish(folder, 0, 1)
    assert states(folder) == ["done"] * 4
    assert len(slurm.calls("squeue")) == 1


def test_without_slurm_jobs_are_judged_by_their_files(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "a", ["7_0", "7_1", "7_2", None])
    finish(folder, 0)
    slurm.answers("squeue", code=1)
    with held(folder / "runs/s1/.lock"):
        found = status.read(folder)
    assert [run.state for run in found.runs] == ["done", "running", "lost", "lost"]
    assert found.problem and found.jobs == [] and found.runs[1].node == ""
    assert found.runs[2].reason == "SLURM could not be asked about its job"
    assert found.runs[3].reason == "it was never started"
    monkeypatch.setenv("PATH", str(tmp_path))  # no squeue at all
    assert "squeue" in status.read(folder).problem
    finish(folder, 1, 2)
    assert status.read(folder).problem == ""


def test_a_launch_at_work_promises_only_its_own_runs(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None, None])
    launch(folder, [1, 2], [Pack("2-0", ["s1", "s2"], None)])
    with held(folder / ".lock"):
        assert dict(zip(manifest.read(folder).runs, states(folder), strict=True)) == {
            "s0": "lost",
            "s1": "pending",
            "s2": "pending",
        }


HOLD = """
import sys
from pathlib import Path
from tests.support.fabricate import held
folder = Path(sys.argv[1])
with held(folder / ".lock"), held(folder / "runs/s0/.lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_its_runs_lost_at_once(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    write(folder / "runs/s0/run.log", "")
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with other:
        assert other.stdout and other.stdout.readline() == b"held\n"
        assert only(folder).state == "running"
        other.kill()
        other.wait()
        assert (only(folder).state, only(folder).reason) == (
            "lost",
            "the process that trained it is gone",
        )


def test_a_run_that_ends_while_it_is_looked_at_is_never_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "a", ["7", None])

    def asked(_: Any) -> dict[str, cluster.Job]:
        finish(folder, 0)  # SLURM forgets the job in the moment that it writes its result
        return {}

    def looked(path: Path) -> bool:
        if path.parent.name == "s1":
            finish(folder, 1)
        return False

    monkeypatch.setattr(cluster, "jobs", asked)
    monkeypatch.setattr(files, "is_locked", looked)
    assert states(folder) == ["done", "done"]


def test_each_run_once_in_the_order_of_the_points(tmp_path: Path) -> None:
    launch(tmp_path, [3, 1, 3, 2], [Pack("1-0", ["s3", "s1", "s2"], None)])
    assert [run.name for run in status.read(tmp_path).runs] == ["s3", "s1", "s2"]


def test_a_result_of_another_config_is_no_result(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    write(folder / "runs/s0/result.json", result(5))
    assert only(folder).state == "lost"


# --- Figures, and files that a crash tore --------------------------------------------------


def test_figures_come_from_the_result_or_the_last_row(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None, None, None, None])
    for seed in range(4):
        write(folder / f"runs/s{seed}/metrics.jsonl", rows(100, 200))
    finish(folder, 0)
    write(folder / "runs/s1/failed.json", {"error": "a\nb", "tokens": 250})
    with held(folder / "runs/s2/.lock"):
        found = status.read(folder).runs
    seen = [(run.tokens, run.tokens_per_s, run.l0, run.fvu) for run in found]
    assert seen == [
        (1000, 50.0, 7.5, 0.25),
        (250, None, 20.0, 0.5),
        (200, 25.0, 20.0, 0.5),
        (200, None, 20.0, 0.5),
    ]
    assert found[0].metrics == {"l0": 7.5, "fvu": 0.25} and found[1].metrics == {}
    assert found[1].reason == "a b"
    assert {run.total_tokens for run in found} == {1000}
    assert (found[0].label, found[0].k, found[3].seed) == ("token_choice", 8.0, 3)


def test_whole_batches_of_both_phases_are_the_run(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    content = json.loads((folder / "sweep.json").read_text())
    config = content["points"][0]["config"]
    config["training"]["tokens"], config["fine_tune"]["tokens"] = 1050, 320
    write(folder / "sweep.json", content)
    assert only(folder).total_tokens == 1000 + 300


def test_torn_metrics_give_the_last_whole_row(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    text = rows(100, 200)
    first = text.index("\n")
    for cut in range(len(text) + 1):
        write(folder / "runs/s0/metrics.jsonl", text[:cut])
        whole = 200 if cut >= len(text) - 1 else 100 if cut >= first else 0
        assert only(folder).tokens == whole, text[:cut]
    for junk in (b"\0" * 5000, b"\xff\xfe", b"17\n", b'{"tokens": null}\n', b'{"tokens": NaN}\n'):
        write(folder / "runs/s0/metrics.jsonl", text.encode() + junk)
        assert only(folder).tokens == 200


def test_only_the_end_of_long_metrics_is_read(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    path = write(folder / "runs/s0/metrics.jsonl", rows(*range(1, 1001)))
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole, which takes no space
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + rows(900).encode())
    begun = time.monotonic()
    assert only(folder).tokens == 900
    assert time.monotonic() - begun < 1.0


def test_torn_results_and_failures(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    text = json.dumps(result(0))
    for cut in range(0, len(text), 3):
        write(folder / "runs/s0/result.json", text[:cut])
        assert only(folder).state == "lost"
    (folder / "runs/s0/result.json").unlink()
    for torn in ("", '{"err', "[]", '{"error": null}', b"\xff"):
        write(folder / "runs/s0/failed.json", torn)
        assert only(folder).state == "failed"
    assert only(folder).reason == "failed.json cannot be read"


def test_folders_that_are_missing_or_are_files(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    assert (only(folder).state, only(folder).tokens) == ("lost", 0)
    write(folder / "runs/s0", "a file where the folder should be")
    assert (only(folder).state, only(folder).tokens) == ("lost", 0)


# --- The verb status -----------------------------------------------------------------------


def mixed(folder: Path) -> Path:
    sweep(folder, [None] * 4)
    finish(folder, 0, 1)
    write(folder / "runs/s2/failed.json", {"error": "OutOfMemory: [cuda] " + "so big " * 40})
    return folder


def test_a_pipe_gets_every_run_on_one_whole_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.chdir(tmp_path)
    mixed(tmp_path / "a")
    assert commands.main(["status", "a"]) == 0
    said = capsys.readouterr()
    heading, *runs, summary, hint = said.out.splitlines()
    headings = "method k seed state % tokens tokens/s L0 FVU where reason"
    assert heading.split() == headings.split()
    wanted = "token_choice 8 0 done 100 1,000 50 7.50 0.2500"
    assert runs[0].split() == wanted.split()
    assert runs[2].rstrip().endswith("OutOfMemory: [cuda] " + ("so big " * 40).strip())
    assert [run.split()[3] for run in runs] == ["done", "done", "failed", "lost"]
    assert summary.strip() == "a: 4 runs: 2 done, 1 failed, 1 lost"
    assert hint.strip() == "train what failed or was lost: sae-sweeps retry a"
    assert said.err == ""


def test_a_narrow_terminal_gets_reasons_below_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    mixed(tmp_path / "a")
    assert commands.main(["status", str(tmp_path / "a")]) == 0
    text = capsys.readouterr().out
    *lines, hint = text.splitlines()
    assert max(len(line) for line in lines) <= 90
    assert hint.startswith("train what failed") and hint.endswith("/a")
    assert "s3 lost: it was never started" in text
    assert "…" not in text and " ".join(text.split()).count("so big") == 40


def test_no_hint_where_nothing_is_to_be_retried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", [None])
    finish(folder, 0)
    assert commands.main(["status", str(folder)]) == 0
    text = capsys.readouterr().out
    assert "a: 1 run: 1 done" in text and "retry" not in text and "reason" not in text


def test_watching_the_table_until_the_sweep_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, folder = sweep(tmp_path / "b", [None]), sweep(tmp_path / "a", [None])
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(terminal, "console", lambda: console)
    launching = ExitStack()

    def pause(_: float) -> None:
        finish(folder, 0)
        launching.close()

    monkeypatch.setattr(commands.time, "sleep", pause)
    with launching:
        launching.enter_context(held(folder / ".lock"))
        assert commands.main(["status", "--watch", str(over), str(folder)]) == 0
    text = screen.getvalue()
    assert text.index("1 run: 1 pending") < text.index("1 run: 1 done")
    assert text.count("1 run: 1 done") == 2  # drawn last, and left on the screen


def test_slurms_silence_is_told(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", ["7"])
    slurm.answers("squeue", code=1)
    assert commands.main(["status", str(folder)]) == 0
    assert "SLURM could not be asked, so its jobs are judged by their files" in (
        capsys.readouterr().out
    )


def test_json_holds_all_that_is_known(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [mixed(tmp_path / "a"), sweep(tmp_path / "b", ["7"])]
    broken = rows(100).replace("0.5", "NaN").replace("10.0", "Infinity")
    write(folders[1] / "runs/s0/metrics.jsonl", broken)
    slurm.queue("7|RUNNING|n1|0|", of=folders[1])
    assert commands.main(["status", "--json", *map(str, folders)]) == 0

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    document = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert document == [status.read(folder).as_json() for folder in folders]
    first, second = document
    assert list(first) == ["name", "folder", "over", "problem", "counts", "runs"]
    assert first["counts"] == {
        "done": 2,
        "running": 0,
        "pending": 0,
        "preempted": 0,
        "failed": 1,
        "lost": 1,
    }
    assert (first["over"], second["over"]) == (True, False)
    [run] = second["runs"]
    assert (run["state"], run["job"], run["node"], run["tokens"]) == ("running", "7", "n1", 100)
    assert run["l0"] is None and run["fvu"] is None
    for name in run:
        assert name in commands.STATUS_HELP


def test_what_is_no_sweep_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("status", "wait", "cancel"):
        assert commands.main([verb, str(tmp_path / "nowhere")]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert line.startswith("sae-sweeps: ") and line.endswith("it has no sweep.json.")


@pytest.mark.slow
def test_two_hundred_runs_cost_less_than_half_of_reading_all_their_rows(
    tmp_path: Path, slurm: Slurm
) -> None:
    """Half a second on a quiet machine, and compared with work done in the same moment on any."""
    folder = sweep(tmp_path / "a", [f"7_{i}" for i in range(200)])
    slurm.queue(*(f"7_{i}|RUNNING|n1|0|" for i in range(200)))
    for seed in range(200):
        write(folder / f"runs/s{seed}/metrics.jsonl", rows(*range(1, 500)))
    finish(folder, *range(0, 200, 2))

    def all_rows() -> None:
        for path in folder.glob("runs/*/metrics.jsonl"):
            for line in path.read_text().splitlines():
                json.loads(line)

    def judged() -> None:
        assert states(folder) == ["done", "running"] * 100

    # By turns: a machine that is busy with other things is so for both.
    costs = [(cost(judged), cost(all_rows)) for _ in range(7)]
    ours, reading = map(min, zip(*costs, strict=True))
    assert ours < reading / 2


def cost(work: Callable[[], None]) -> float:
    """CPU seconds, as users pay them: no types are checked."""
    begun = time.process_time()
    with unchecked():
        work()
    return time.process_time() - begun


def test_status_starts_quickly_and_loads_nothing_heavy(tmp_path: Path) -> None:
    folder = mixed(tmp_path / "a")
    code = f"""
import sys, time
start = time.process_time()
from sae_sweeps import __main__
sys.argv = ['sae-sweeps', 'status', {str(folder)!r}]
try:
    __main__.main()
except SystemExit as ended:
    assert ended.code == 0
said = time.process_time()
print({{'torch', 'hydra', 'wandb', 'numpy', 'matplotlib', 'submitit'}} & set(sys.modules))
import hydra.main
print((said - start) / (time.process_time() - said))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *_, heavy, times = done.stdout.splitlines()
    assert heavy == "set()"
    assert float(times) < 10  # in what it takes to import Hydra, however busy the machine


# --- The verb wait -------------------------------------------------------------------------


class Shown(progress.Quiet):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(4, 4000)
        self.stages: list[str] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)


def test_watching_shows_each_step_and_ends(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None] * 4)
    finish(folder, 0)
    write(folder / "runs/s1/metrics.jsonl", rows(100))
    display = Shown()
    seen: list[tuple[int, list[str]]] = []
    launching = ExitStack()

    def step() -> bool:
        seen.append((display.done, [row.status for row in display.rows]))
        if display.done == 1100:
            write(folder / "runs/s1/metrics.jsonl", rows(100, 300))
        elif display.done == 1300:
            write(folder / "runs/s1/metrics.jsonl", rows(200))  # back at its checkpoint
        elif display.done == 1200:
            finish(folder, 1, 2)
            write(folder / "runs/s3/failed.json", {"error": "no", "tokens": 50})
            launching.close()
        return False

    with launching, held(folder / "runs/s1/.lock"):
        launching.enter_context(held(folder / ".lock"))
        found = monitor.watch(folder, display, every_s=0.01, stop=step)
    assert found.over and found.counts["done"] == 3
    assert (display.ended, display.failed, display.done) == (4, 1, 3050)
    assert display.tokens == 3050  # the rest of the failed run is not waited for
    assert [row.status for row in display.rows] == ["finished"] * 3 + ["failed"]
    assert display.stages == ["1 running, 2 pending", "1 failed"]
    assert {1100, 1300, 1200} <= {done for done, _ in seen}
    assert ["finished", "training", "pending", "pending"] in [rows for _, rows in seen]
    assert display.before == 1100


def test_watching_some_runs_only(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None, None])
    finish(folder, 1)
    display = Shown()
    with held(folder / ".lock"):
        found = monitor.watch(folder, display, names=["s1"])
    assert len(display.rows) == 1 and not found.over


def test_a_launcher_ends_the_watch_although_it_holds_the_sweep(tmp_path: Path) -> None:
    folder = sweep(tmp_path, [None])
    with held(folder / ".lock"):
        found = monitor.watch(folder, Shown(), every_s=60.0, stop=lambda: True)
    assert [run.state for run in found.runs] == ["pending"]


def test_lost_runs_of_jobs_must_stay_lost(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "a", ["7"])
    looks = 0

    def late() -> bool:  # as on a network disk, the result shows up after the job's end
        nonlocal looks
        looks += 1
        if looks == 5:
            finish(folder, 0)
        return False

    monkeypatch.setattr(monitor, "SETTLE_S", 60.0)
    assert monitor.watch(folder, Shown(), every_s=0.01, stop=late).counts["done"] == 1
    (folder / "runs/s0/result.json").unlink()
    monkeypatch.setattr(monitor, "SETTLE_S", 0.1)
    display = Shown()
    assert monitor.watch(folder, display, every_s=0.01).counts["lost"] == 1
    assert (display.ended, display.failed) == (1, 1)
    slurm.answers("squeue", code=1)  # SLURM's silence is borne longer
    with pytest.raises(TimeoutError):
        monitor.watch(folder, Shown(), every_s=0.01, timeout_s=0.3)
    monkeypatch.setattr(monitor, "PATIENCE_S", 0.1)
    assert monitor.watch(folder, Shown(), every_s=0.01).counts["lost"] == 1


def test_only_the_time_since_a_job_ended_counts(
    tmp_path: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = sweep(tmp_path / "a", ["7"])
    slurm.queue("7|RUNNING|n1|0|")
    monkeypatch.setattr(monitor, "SETTLE_S", 0.3)
    looks: list[float] = []

    def later() -> bool:
        looks.append(time.monotonic())
        if looks[-1] - looks[0] > 0.4:
            slurm.queue()
        return False

    assert monitor.watch(folder, Shown(), every_s=0.01, stop=later).counts["lost"] == 1
    assert looks[-1] - looks[0] > 0.65


def test_waiting_ends_with_the_report_and_0_or_2(
    tmp_path: Path, reports: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = mixed(tmp_path / "a")
    assert commands.main(["wait", str(folder)]) == 2
    said = capsys.readouterr()
    told = [line for line in said.err.splitlines() if line.startswith("sae-sweeps: ")]
    assert [line[:27] for line in told] == [
        "sae-sweeps: s2 failed: OutO",
        "sae-sweeps: s3 was lost: it",
    ]
    assert said.out.splitlines()[-1] == "a: 2 of 4 runs are finished"
    (folder / "runs/s2/failed.json").unlink()
    finish(folder, 2, 3)
    assert commands.main(["wait", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "a: 4 of 4 runs are finished"
    assert reports == [folder, folder]


def test_waiting_without_any_result_draws_nothing(tmp_path: Path, reports: list[Path]) -> None:
    assert commands.main(["wait", str(sweep(tmp_path / "a", [None]))]) == 2
    assert reports == []


def test_waiting_too_long_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path / "a", [None])
    words = ["--timeout-minutes", "0.001", "--every-s", "0.01"]
    with held(folder / ".lock"):
        assert commands.main(["wait", str(folder), *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sae-sweeps: a is not over: 1 pending, after 0.001 minutes."
    )


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon"])
def test_times_that_are_none(capsys: pytest.CaptureFixture[str], value: str) -> None:
    for option in ("--every-s", "--timeout-minutes"):
        assert commands.main(["wait", "a", f"{option}={value}"]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert option in line and f"{value!r} is not a positive number" in line


# --- The verb cancel -----------------------------------------------------------------------


def test_nothing_to_cancel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.main(["cancel", str(mixed(tmp_path / "a"))]) == 0
    assert capsys.readouterr().out == "a: nothing to cancel, no run is running or pending\n"


def test_live_jobs_are_cancelled_each_once(
    tmp_path: Path,
    slurm: Slurm,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "a"
    packs = [Pack("1-0", ["s0", "s1"], "7_0"), Pack("1-1", ["s2"], "7_1"), Pack("1-2", ["s3"], "8")]
    launch(folder, [0, 1, 2, 3], packs)
    finish(folder, 0)
    slurm.queue("7_0|RUNNING|n1|0|", "7_1|PENDING||1|Priority", "8|CANCELLED||0|")
    monkeypatch.chdir(tmp_path)
    assert commands.main(["cancel", "a"]) == 0
    assert slurm.calls("scancel") == ["7_0 7_1"]
    assert capsys.readouterr().out.splitlines() == [
        "a: cancelled jobs 7_0, 7_1",
        "a: checkpoints are kept; to go on, repeat its command, or sae-sweeps retry a",
    ]
    assert commands.main(["cancel", "--json", "a"]) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "a", "folder": "a", "jobs": ["7_0", "7_1"], "pid": None}
    ]


def test_jobs_that_cannot_be_asked_about_are_not_cancelled(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", ["7"])
    slurm.answers("squeue", code=1)
    assert commands.main(["cancel", str(folder)]) == 1
    assert "a's jobs are not cancelled: " in capsys.readouterr().err
    slurm.queue("7|RUNNING|n1|0|")
    slurm.answers("scancel", code=1)
    assert commands.main(["cancel", str(folder)]) == 1
    assert "a's jobs are not cancelled: " in capsys.readouterr().err


def test_a_command_on_another_machine_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", [None])
    content = json.loads((folder / "sweep.json").read_text())
    write(folder / "sweep.json", content | {"host": "far.away", "pid": 12})
    with held(folder / ".lock"):
        assert commands.main(["cancel", str(folder)]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("is trained on far.away, by process 12: cancel it there.")


def test_no_stranger_is_killed(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "a", [None])
    content = json.loads((folder / "sweep.json").read_text())
    stranger = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with stranger:
        write(folder / "sweep.json", content | {"pid": stranger.pid})
        with held(folder / ".lock"), pytest.raises(ConfigError, match="is in use, but not by"):
            cancelling.cancel(folder)
        assert stranger.poll() is None


def test_a_job_of_another_folder_or_name_is_a_strangers(
    tmp_path: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a copy of a sweep, or where somebody wrote a number into its manifest."""
    folder = sweep(tmp_path / "a", ["7", "8", "9", "10"])
    (folder / "packs").mkdir()
    others = tmp_path / "elsewhere/a", tmp_path / "b"
    lines = list[str]()
    for number, place in zip(("7", "8"), others, strict=True):
        slurm.queue(f"{number}|RUNNING|n1|0|", of=place)
        lines += (slurm.folder / "squeue.answer").read_text().splitlines()
    lines.append(f"9|RUNNING|n1|0|other|{folder}/packs/.submission.sh|{folder}/packs/9/out|")
    slurm.answers("squeue", *lines, "10|RUNNING|n1|0|a|(null)|/dev/null|")
    found = status.read(folder)
    assert found.jobs == [] and found.strangers == ["10", "7", "8", "9"] and found.over
    assert [run.reason for run in found.runs] == [
        f"its job {number} is not of this sweep's folder" for number in (7, 8, 9, 10)
    ]
    assert commands.main(["cancel", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "a: 10, 7, 8, 9 left alone, not submitted from this folder",
        "a: nothing to cancel, no run is running or pending",
    ]
    assert slurm.calls("scancel") == []
    rewritten = f"7|RUNNING|n1|0|a|/spool/7.sh|{folder}/packs/7/7_0_log.out|"  # by a site's sbatch
    slurm.answers("squeue", rewritten)
    assert status.read(folder).jobs == ["7"]


def test_a_command_that_trains_another_sweep_is_left_alone(tmp_path: Path) -> None:
    """The manifest is a copy, or names the process of whoever it likes."""
    folder, other = sweep(tmp_path / "a", [None]), sweep(tmp_path / "b", [None])
    content = json.loads((folder / "sweep.json").read_text())
    line = [sys.executable, "-c", HOLD_SWEEP, str(other), "sae-sweeps"]
    with subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE) as training:
        assert training.stdout and training.stdout.readline() == b"held\n"
        write(folder / "sweep.json", content | {"pid": training.pid})
        assert cancelling.cancel(folder).pid is None
        with held(folder / ".lock"), pytest.raises(ConfigError, match="is in use, but not by"):
            cancelling.cancel(folder)
        assert training.poll() is None
        training.kill()


SMALL = (
    *("name=real", "tracking=off", "k=4,8", "d_sae=64", "stream.batch_tokens=512"),
    *("stream.chunk_tokens=1024", "stream.calibration_tokens=1024", "evaluation.tokens=1024"),
    *("evaluation.ce_tokens=256", "device=cpu", "training.tokens=40960000", "stream.repeat=true"),
    "training.log_every_tokens=2048",
)


def poll(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


HOLD_SWEEP = """
import sys, time
from pathlib import Path
from tests.support.fabricate import held
with held(Path(sys.argv[1]) / ".lock"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_local_command_is_told_to_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "a", [None])
    content = json.loads((folder / "sweep.json").read_text())
    training = subprocess.Popen(
        [sys.executable, "-c", HOLD_SWEEP, folder, "sae-sweeps"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    with training:
        assert training.stdout and training.stdout.readline() == b"held\n"
        write(folder / "sweep.json", content | {"pid": training.pid})
        assert commands.main(["cancel", "--json", str(folder)]) == 0
        assert training.wait(30) == -signal.SIGTERM
    [said] = json.loads(capsys.readouterr().out)
    assert (said["jobs"], said["pid"]) == ([], training.pid)


@pytest.mark.slow
def test_a_real_sweep_is_seen_cancelled_and_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "outputs/real"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sae_sweeps", *SMALL]
    log = (tmp_path / "log").open("wb")
    with (
        log,
        subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log
        ) as training,
    ):
        try:
            poll(lambda: (folder / "sweep.json").exists() or training.poll() is not None)
            assert training.poll() is None, (tmp_path / "log").read_text()
            poll(lambda: all(run.tokens for run in status.read(folder).runs))
            found = status.read(folder)
            assert [run.state for run in found.runs] == ["running", "running"]
            assert found.runs[0].node and found.runs[0].job is None
            assert 0 < found.runs[0].tokens < found.runs[0].total_tokens == 40960000
            capsys.readouterr()
            assert commands.main(["cancel", str(folder)]) == 0
            assert f"told process {training.pid} to stop" in capsys.readouterr().out
            training.wait(30)
        finally:
            training.kill()
    assert states(folder) == ["lost", "lost"]
    assert commands.main(["cancel", str(folder)]) == 0
    assert "nothing to cancel" in capsys.readouterr().out
