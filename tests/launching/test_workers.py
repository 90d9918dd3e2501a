"""Launches on this machine: signals and kills to real processes, workers side by side, `force`."""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Trainer, run, trainer
from tests.support.launches import (
    SMALL,
    SYNTHETIC,
    Launch,
    Launches,
    Left,
    checkpoints,
    launches,
    left,
    logs,
    rows,
    trained,
    until,
)
from tests.support.processes import children
from tests.support.slow_model import PROCESSES, SLOW_TARGET, in_training

__all__ = ["launches", "run", "trainer"]  # fixtures

# One process that has loaded everything, and one undisturbed sweep, serve all tests.
pytestmark = pytest.mark.xdist_group("launches")

TWO_RUNS = [*SMALL, *SLOW_TARGET, "name=it", "method=topk,mutual_choice"]
"""In one pack."""
LONG = [*TWO_RUNS, "training.tokens=32768"]
PACKS = [
    *SMALL,
    SYNTHETIC,
    "name=it",
    "method=topk",
    "stream.seed=0,1,2,3",
    "training.tokens=16384",
]
"""Four packs of one run each."""
TWO = "hydra.launcher.workers=2"
TOGETHER = f"import os; os.environ['{PROCESSES}'] = '2'"
"""Executed before a command: its workers are in training at the same time."""


@pytest.fixture(scope="module")
def whole(launches: Launches, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """What the undisturbed sweep of two runs leaves."""
    home = tmp_path_factory.mktemp("whole")
    assert launches.run(home, *LONG).code == 0
    return left(home / "outputs/it")


@pytest.fixture(scope="module")
def four(launches: Launches, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """What the undisturbed sweep of four packs leaves, one after another."""
    home = tmp_path_factory.mktemp("four")
    assert launches.run(home, *PACKS).code == 0
    return left(home / "outputs/it")


def failures(launch: Launch) -> list[str]:
    """The lines that tell of a failed run."""
    return [line for line in launch.err.splitlines() if " failed: " in line]


# --- Signals to the launch -----------------------------------------------------------------


@pytest.mark.parametrize(
    "signum",
    [
        signal.SIGTERM,
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR2, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_signal_saves_and_the_same_command_goes_on(
    signum: int, launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/it"
    launch = launches.start(tmp_path, *LONG)
    until(lambda: trained(folder) >= 5000, "tokens")
    sent = time.monotonic()
    launch.send(signum)
    assert launch.wait(10) == 128 + signum
    assert time.monotonic() - sent < 2
    [line] = launch.err.splitlines()
    assert line.startswith("sae-sweeps: interrupted, 0 of 2 runs are finished and the others saved")
    saved = checkpoints(folder)
    assert len(saved) == 2 and min(saved) > 4000
    again = launches.run(tmp_path, *LONG)
    assert (again.code, again.err) == (0, "")
    assert "2 runs to train, 2 of them from a checkpoint" in again.out
    assert logs(folder).count("resumed at") == 2
    assert left(folder) == whole


@pytest.mark.slow
def test_after_nohup_a_closed_terminal_is_not_heard(launches: Launches, tmp_path: Path) -> None:
    launch = launches.start(tmp_path, *LONG, ignored=(signal.SIGHUP,))
    until(lambda: trained(tmp_path / "outputs/it") >= 5000, "tokens")
    launch.send(signal.SIGHUP)
    assert launch.wait() == 0


@pytest.mark.slow
def test_nobody_reading_ends_no_run(launches: Launches, whole: dict[str, Left], tmp_path: Path):
    """`sae-sweeps 2>&1 | tee log` whose reader dies, as of a Ctrl-C, before training ends."""
    words = [word for word in LONG if "progress" not in word]
    launch = launches.start(
        tmp_path, *words, broken=True, patches={"sae_sweeps.launching.progress:LINE_EVERY_S": 0.0}
    )
    assert launch.wait() == 0
    assert left(tmp_path / "outputs/it") == whole


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(
    launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    moments, kills = random.Random(1), 0
    folder = tmp_path / "outputs/it"
    while True:
        launch = launches.start(tmp_path, *LONG, "checkpoint_minutes=0.001")
        end = time.monotonic() + 0.3 + 0.7 * moments.random() + max(0, kills - 2) / 2
        while not launch.ended() and time.monotonic() < end:
            time.sleep(0.005)
        if launch.code is not None:
            break
        launch.send_all(signal.SIGKILL)
        launch.wait()
        kills += 1
        assert kills < 60
    assert launch.code == 0 and kills >= 3
    assert left(folder) == whole
    for path in (folder / "runs").iterdir():
        counted = [row["tokens"] for row in rows(path)]
        assert len(counted) == len(set(counted))


# --- Workers -------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_train_what_one_process_would(
    launches: Launches, four: dict[str, Left], tmp_path: Path
) -> None:
    """Four packs for two workers, then a pack divided among two."""
    done = launches.run(tmp_path, *PACKS, TWO)
    assert (done.code, done.err) == (0, "")
    assert "it: 4 of 4 runs are finished" in done.out
    assert left(tmp_path / "outputs/it") == four
    logs_of_packs = sorted((tmp_path / "outputs/it/packs").glob("1-*.log"))
    assert len(logs_of_packs) == 4
    assert all("1 of 1 runs are finished" in log.read_text() for log in logs_of_packs)


@pytest.mark.slow
def test_one_pack_is_divided_among_workers(
    launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    assert launches.run(tmp_path, *LONG, TWO).code == 0
    assert left(tmp_path / "outputs/it") == whole
    packs = json.loads((tmp_path / "outputs/it/sweep.json").read_text())["packs"]
    assert [len(pack["runs"]) for pack in packs] == [1, 1]


def left_after(folder: Path) -> list[float]:
    """How many seconds after a signal runs were saved."""
    lines = [line for line in logs(folder).splitlines() if " s after SIG" in line]
    return [float(line.split(", ")[-1].split()[0]) for line in lines]


@pytest.mark.slow
def test_a_killed_worker_costs_its_own_run_only(
    launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/it"
    launch = launches.start(tmp_path, *LONG, TWO, "checkpoint_minutes=0.002", before=TOGETHER)
    until(lambda: in_training(tmp_path) == 2 and checkpoints(folder), "training")
    [victim, _] = sorted(children(launch.pid))
    os.kill(victim, signal.SIGKILL)
    assert launch.wait() == 2
    [line] = failures(launch)
    assert line.endswith("failed: its process was killed by SIGKILL")
    assert "it: 1 of 2 runs are finished" in launch.out
    again = launches.run(tmp_path, *LONG, TWO)
    assert again.code == 0 and "1 run to train" in again.out and "1 finished before" in again.out
    assert left(folder) == whole


@pytest.mark.slow
@pytest.mark.parametrize("to_all", [False, True])
def test_ctrl_c_saves_all_workers(
    to_all: bool, launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/it"
    launch = launches.start(tmp_path, *LONG, TWO, before=TOGETHER)
    until(lambda: in_training(tmp_path) == 2, "training")
    (launch.send_all if to_all else launch.send)(signal.SIGINT)
    assert launch.wait(30) == 130
    assert all(seconds < 1 for seconds in left_after(folder))
    assert launch.err.startswith("sae-sweeps: interrupted, 0 of 2 runs are finished")
    assert len(launch.err.splitlines()) == 1
    assert len(checkpoints(folder)) == 2 and logs(folder).count(" s after SIG") == 2
    for out in (folder / "packs").glob("*.out"):
        assert out.read_text() == ""  # no traceback
    assert launches.run(tmp_path, *LONG).code == 0
    assert left(folder) == whole


@pytest.mark.slow
def test_workers_leave_with_their_parent(
    launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/it"
    launch = launches.start(tmp_path, *LONG, TWO, before=TOGETHER)
    until(lambda: in_training(tmp_path) == 2, "training")
    launch.send(signal.SIGKILL)
    launch.wait()
    until(lambda: len(checkpoints(folder)) == 2 and logs(folder).count(" s after SIG") == 2, "save")
    assert launches.run(tmp_path, *LONG).code == 0
    assert left(folder) == whole


@pytest.mark.slow
def test_what_only_a_worker_can_see_fails_its_run(launches: Launches, tmp_path: Path) -> None:
    words = [*SMALL, SYNTHETIC, "name=it", "method=topk", "stream.seed=0,1", TWO]
    done = launches.run(tmp_path, *words, "training.tokens=4096,100000000")
    assert done.code == 2
    assert len(failures(done)) == 2
    for line in failures(done):
        assert "failed: training.tokens is 100000000: the data hold 10000128 training" in line
    assert "it: 2 of 4 runs are finished" in done.out
    failed = [path.parent for path in (tmp_path / "outputs/it/runs").glob("*/failed.json")]
    assert len(failed) == 2
    for path in failed:
        assert "Traceback" in (path / "run.log").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["null", "2"])
def test_a_failing_run_leaves_the_others_alone(
    workers: str, launches: Launches, tmp_path: Path
) -> None:
    words = [*SMALL, SYNTHETIC, "name=it", "method=topk", "training.tokens=4096"]
    words += ["training.gradient_clip_norm=1e30", "seed=0,1"]
    apart = f"hydra.launcher.workers={workers}"
    done = launches.run(tmp_path, *words, "optimizer.lr=1e-3,1e30", apart)
    assert done.code == 2 and "it: 2 of 4 runs are finished" in done.out
    assert len(failures(done)) == 2 == len(done.err.splitlines())
    assert all("FloatingPointError: the loss is " in line for line in failures(done))
    good = tmp_path / "good"
    assert launches.run(good, *words, "optimizer.lr=1e-3").code == 0
    finished = tmp_path / "outputs/it/runs"
    for name, alone in left(good / "outputs/it").items():
        assert (
            json.loads((finished / name / "result.json").read_text())["metrics"]
            == (alone.result["metrics"])
        )


# --- Force ---------------------------------------------------------------------------------

BRIEF = [*SMALL, SYNTHETIC, "method=topk", "k=4,8", "training.tokens=4096"]


@pytest.mark.slow
def test_force_trains_finished_runs_too(
    run: Callable[..., int], trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["name=anew", "method=topk,gated", "stream.seed=0,1"]  # two packs
    assert run(*words) == 0
    assert run(*words) == 0
    assert len(trainer.runs) == 4
    assert run(*words, "force=true") == 0
    assert len(trainer.runs) == 8
    assert "4 runs to train, 4 moved into outputs/anew/aside" in capsys.readouterr().out
    assert len(list(Path("outputs/anew/aside").glob("*/*/result.json"))) == 4


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text())


@pytest.mark.slow
def test_force_trains_anew_and_deletes_nothing(launches: Launches, tmp_path: Path) -> None:
    words = [word for word in BRIEF if word != "k=4"]
    assert launches.run(tmp_path, *words).code == 0
    [folder] = (tmp_path / "outputs").iterdir()  # the name is derived
    before, first = left(folder), manifest(folder)
    for path in (folder / "runs").iterdir():
        (path / "mark").write_text(path.name)
    forced = launches.run(tmp_path, *words, "force=true")
    assert forced.code == 0
    assert f"2 runs to train, 2 moved into outputs/{folder.name}/aside" in forced.out
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == [folder.name]
    assert left(folder) == before and "resumed" not in logs(folder)
    assert not list((folder / "runs").glob("*/mark"))
    [aside] = (folder / "aside").iterdir()
    assert {path.name: (path / "mark").read_text() for path in aside.iterdir()} == {
        name: name for name in before
    }
    assert all((path / "result.json").exists() for path in aside.iterdir())
    assert manifest(folder)["points"] == first["points"]
    assert not any(point["config"]["force"] for point in manifest(folder)["points"])
    plain = launches.run(tmp_path, *words)
    assert plain.code == 0 and "0 runs to train, 2 finished before" in plain.out
    status = json.loads(launches.run(tmp_path, "status", str(folder), "--json").out)
    assert status[0]["counts"]["done"] == 2
    assert "no run has failed" in launches.run(tmp_path, "retry", str(folder)).out


@pytest.mark.slow
def test_force_takes_nobodys_run_away(
    launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/it"
    first = launches.start(tmp_path, *LONG)
    until(lambda: trained(folder) >= 5000, "tokens")
    first.send_all(signal.SIGSTOP)  # however fast it is
    second = launches.run(tmp_path, *LONG, "force=true")
    first.send_all(signal.SIGCONT)
    assert second.code == 1
    [line] = second.err.splitlines()
    assert "in use by another sae-sweeps" in line
    assert first.wait() == 0
    assert not (folder / "aside").exists() and left(folder) == whole


@pytest.mark.slow
def test_force_after_an_interruption_starts_from_nothing(
    launches: Launches, whole: dict[str, Left], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs/it"
    launch = launches.start(tmp_path, *LONG)
    until(lambda: trained(folder) >= 5000, "tokens")
    launch.send(signal.SIGTERM)
    launch.wait()
    assert launches.run(tmp_path, *LONG, "force=true").code == 0
    assert left(folder) == whole and "resumed" not in logs(folder)
    assert len(list((folder / "aside").glob("*/*/checkpoint/step-*"))) == 2
