"""Faults around a launch: two at once, locks, disks, damage, other versions; and `retry`."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from safetensors import safe_open

from sae_sweeps.launching import job
from sae_sweeps.record import checkpoint, manifest
from sae_sweeps.record.checkpoint import Checkpoint
from sae_sweeps.record.folder import RunFolder
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.system import files
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
from tests.support.slow_model import SLOW_TARGET
from tests.support.small import Quiet, small_run, train, train_pack

__all__ = ["launches"]  # a fixture

pytestmark = pytest.mark.xdist_group("launches")

IT = [*SMALL, SYNTHETIC, "name=it"]
TWO_RUNS = [*SMALL, *SLOW_TARGET, "name=it", "method=topk,mutual_choice", "training.tokens=32768"]
BRIEF = [*IT, "method=topk,mutual_choice", "training.tokens=8192"]
OFTEN = "checkpoint_minutes=0.001"


@pytest.fixture(scope="module")
def brief(launches: Launches, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Left]:
    """What the undisturbed short sweep leaves."""
    home = tmp_path_factory.mktemp("brief")
    assert launches.run(home, *BRIEF).code == 0
    return left(home / "outputs/it")


def one_line(launch: Launch, code: int) -> str:
    """The one line with which a launch ended."""
    assert launch.code == code, launch.out + launch.err
    [line] = launch.err.splitlines()
    assert line.startswith("sae-sweeps: ")
    return line


def assert_whole(folder: Path) -> None:
    """No file that is written at once is torn, and none is left beside its place."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    for path in paths:
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                assert all(file.get_tensor(name).numel() >= 0 for name in file.keys())  # noqa: SIM118
    beside = [path.name for path in paths if path.name.startswith(".") and path.suffix != ".lock"]
    assert [name for name in beside if not name.endswith(".lock")] == []


# --- Two at once ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("attempt", range(3))
def test_of_two_launches_at_once_one_trains(
    attempt: int, launches: Launches, brief: dict[str, Left], tmp_path: Path
) -> None:
    pair = [launches.start(tmp_path, *BRIEF)]
    time.sleep(0.05 * attempt)
    pair.append(launches.start(tmp_path, *BRIEF))
    codes = sorted(launch.wait() for launch in pair)
    assert codes in ([0, 0], [0, 1])
    for launch in pair:
        if launch.code == 1:
            line = one_line(launch, 1)
            assert "in use by another" in line or "just been extended" in line
    assert left(tmp_path / "outputs/it") == brief
    assert logs(tmp_path / "outputs/it").count(" training ") == 2
    # The second may have planned what the first finished while it waited for the lock.
    assert len(manifest.read(tmp_path / "outputs/it").launches) in (1, 1 + (codes == [0, 0]))


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_left_alone(
    launches: Launches, brief: dict[str, Left], tmp_path: Path
) -> None:
    taken, other = sorted(brief)
    run = tmp_path / "outputs/it/runs" / taken
    run.mkdir(parents=True)
    with FileLock(run / ".lock"):
        limit = {"sae_sweeps.training.member:LOCK_LIMIT_S": 0.3}
        done = launches.run(tmp_path, *BRIEF, patches=limit)
        assert f"{taken} failed: RuntimeError: another process trains this run" in one_line(done, 2)
        assert [path.name for path in run.iterdir()] == [".lock"]
    assert "it: 1 of 2 runs are finished" in done.out
    assert (run.parent / other / "result.json").exists()
    assert launches.run(tmp_path, *BRIEF).code == 0
    assert left(tmp_path / "outputs/it") == brief


# --- Disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    [
        "outputs/it",
        pytest.param("outputs", marks=pytest.mark.slow),
        pytest.param("outputs/it/runs", marks=pytest.mark.slow),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(
    what: str, launches: Launches, tmp_path: Path
) -> None:
    (tmp_path / what).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / what).write_text("a file")
    done = launches.run(tmp_path, *BRIEF)
    assert done.code in (1, 2)
    lines = [line for line in done.err.splitlines() if not line.startswith("sae-sweeps: ")]
    assert lines == [] and "Traceback" not in done.out
    assert str(tmp_path / what) in done.err


@pytest.fixture
def mounts() -> Iterator[Any]:
    """A function that mounts something for the test; skips where that is not allowed."""
    with ExitStack() as undo:

        def mount(*words: str) -> None:
            done = subprocess.run(["mount", *words], capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"mounting needs root: {done.stderr.strip()}")
            if "remount" not in words[1]:
                undo.callback(subprocess.run, ["umount", words[-1]], check=True)

        yield mount


@pytest.mark.slow
def test_a_read_only_disk_is_one_line(launches: Launches, tmp_path: Path, mounts: Any) -> None:
    sweep = tmp_path / "outputs"
    sweep.mkdir()
    mounts("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(sweep))
    mounts("-o", "remount,ro", str(sweep))
    assert "Read-only file system" in one_line(launches.run(tmp_path, *BRIEF), 1)
    mounts("-o", "remount,rw", str(sweep))
    launch = launches.start(tmp_path, *TWO_RUNS)
    until(lambda: trained(sweep / "it") >= 5000, "tokens")
    launch.send(signal.SIGTERM)
    launch.wait()
    saved = checkpoints(sweep / "it")
    mounts("-o", "remount,ro", str(sweep))
    assert "Read-only file system" in one_line(launches.run(tmp_path, *TWO_RUNS), 1)
    mounts("-o", "remount,rw", str(sweep))
    assert checkpoints(sweep / "it") == saved
    assert launches.run(tmp_path, *TWO_RUNS).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [0, 60, 500])
def test_a_full_disk_is_told_and_tears_nothing(
    kilobytes: int, launches: Launches, brief: dict[str, Left], tmp_path: Path, mounts: Any
) -> None:
    disk = tmp_path / "outputs"
    disk.mkdir()
    mounts("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk))
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(16 * 2**20 - kilobytes * 1024 - 16384))
    done = launches.run(tmp_path, *BRIEF, "checkpoint_minutes=0")
    assert done.code in (1, 2), done.out + done.err
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err and "Logging error" not in done.err
    assert len(done.err.splitlines()) <= 4  # two a run
    assert_whole(disk)
    ballast.unlink()
    again = launches.run(tmp_path, *BRIEF)
    assert (again.code, again.err) == (0, "")
    assert left(disk / "it") == brief
    assert_whole(disk)


class Filling(Quiet):
    """Makes checkpoints fail, and work again, at some of a run's batches."""

    def __init__(self, patch: pytest.MonkeyPatch, failing: range) -> None:
        self.patch, self.failing, self.batches = patch, failing, 0
        self.save = checkpoint.save

    def advance(self, run: int, tokens: int) -> None:
        self.batches += 1
        full = self.batches in self.failing
        self.patch.setattr("sae_sweeps.record.checkpoint.save", self.refuse if full else self.save)

    def refuse(self, folder: Path, taken: Checkpoint) -> None:
        raise OSError(28, "No space left on device", str(folder))


@pytest.mark.slow
def test_a_run_survives_a_failed_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = (small_run(tmp_path / name, "checkpoint_minutes=0") for name in ("a", "b"))
    [outcome] = train_pack([run], Filling(monkeypatch, range(3, 6)))
    assert isinstance(outcome, Result)
    log = (run.folder / "run.log").read_text()
    assert log.count("no checkpoint could be written, training goes on: ") == 3
    assert "No space left on device" in log
    monkeypatch.undo()
    [alone] = train(other)
    assert isinstance(alone, Result) and alone.metrics == outcome.metrics


def test_a_checkpoint_that_does_not_fit_leaves_those_before(tmp_path: Path) -> None:
    """With a limit on file sizes in place of a full disk."""
    import resource

    import torch

    folder = RunFolder(tmp_path)
    checkpoint.save(folder, Checkpoint("id", 1, {"a": torch.ones(4)}, {}))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match=r"step-0+2\.safetensors"):
            checkpoint.save(folder, Checkpoint("id", 2, {"a": torch.ones(9999)}, {}))
        with pytest.raises(OSError) as told:
            files.write_text(tmp_path / "big.json", "x" * 9999)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert told.value.filename == str(tmp_path / "big.json")
    assert [path.name for path in folder.checkpoints.iterdir()] == [
        "step-000000000000001.safetensors"
    ]
    found = checkpoint.latest(folder, "id")
    assert found is not None and found.tokens == 1


# --- Damage, edits, versions ---------------------------------------------------------------


class Interrupting(Quiet):
    def __init__(self) -> None:
        self.left = 6

    def advance(self, run: int, tokens: int) -> None:
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.parametrize("damaged", [1, 2])
def test_the_runs_own_log_says_which_checkpoint_was_passed_over(
    damaged: int, tmp_path: Path
) -> None:
    run = small_run(tmp_path, "checkpoint_minutes=0")
    with pytest.raises(KeyboardInterrupt):
        train_pack([run], Interrupting())
    saved = sorted((run.folder / "checkpoint").iterdir())
    for path in saved[-damaged:]:
        path.write_bytes(path.read_bytes()[:-9])
    assert isinstance(train(run)[0], Result)
    log = (run.folder / "run.log").read_text()
    for path in saved:
        assert (f"WARNING {path} is passed over: " in log) == (path in saved[-damaged:])
    assert ("resumed at" in log) == (damaged == 1)


def frozen(folder: Path, **changed: Any) -> Path:
    """The file of a pack with one short run."""
    run = small_run(folder / "runs", "training.tokens=1024")
    run = Run(run.name, "it", run.folder, run.config, run.choices, run.overrides)
    row = {key: getattr(run, key) for key in ("name", "sweep", "choices", "overrides")}
    row["config"] = run.config.tree
    pack = {"version": 1, "search_path": [], "git": manifest.git_state(), "runs": [row]}
    path = folder / "packs" / "1-0.json"
    files.write_json(path, pack | changed)
    return path


HERE = {"commit": "a" * 40, "diff": "-a\n+b\n"}


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ({"commit": "0123456789abcdef", "diff": ""}, "commit 012345678, now aaaaaaaaa"),
        (HERE | {"diff": ""}, "uncommitted changes"),
        (HERE, None),
        (None, None),
    ],
)
def test_code_edited_after_submission_is_warned_of(
    then: Any, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "git_state", lambda: HERE)
    path = frozen(tmp_path, git=then)

    def nothing(*_: object) -> dict[str, Any]:
        return {}

    monkeypatch.setattr(job, "work", nothing)
    monkeypatch.setattr(job, "_report", nothing)
    assert job.run_pack(path) == 0
    log = path.with_suffix(".log").read_text()
    line = "WARNING the code was edited since this pack was submitted: "
    assert (line in log) == (said is not None)
    assert said is None or line + said in log


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"version": 7}', "has version 7, expected 3"),
        ('{"runs": []}', "has version None, expected 3"),
        ('{"version": 3}', "is not a pack's file: it lacks 'runs'"),
        ('{"version"', "is not a pack's file"),
        ("[]", "is not a pack's file"),
        (None, "cannot read"),
    ],
)
def test_another_packs_file_is_one_line(content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "packs" / "1-0.json"
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as ended:
        job.run_pack(path)
    assert ended.value.code == 1
    [line] = path.with_suffix(".log").read_text().splitlines()
    assert said in line and " ERROR " in line


# --- Retry ---------------------------------------------------------------------------------

NOISY = '''
"""Token choice that fails when told to."""

from pathlib import Path

from sae_sweeps.allocator.token_choice import TokenChoice


class Mine(TokenChoice):
    """Fails as long as there is a file `fail` beside the module."""

    def __init__(self, d_sae: int, *, k: int) -> None:
        super().__init__(d_sae, k=k)

    def forward(self, affinities):
        if (Path(__file__).parent / "fail").exists():
            raise RuntimeError("the file says so")
        return super().forward(affinities)
'''


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["null", "2"])
def test_retry_from_elsewhere_finds_the_users_modules(
    workers: str, launches: Launches, tmp_path: Path
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "my_conf/allocator").mkdir(parents=True)
    (home / "my_module.py").write_text(NOISY)
    (home / "my_conf/allocator/mine.yaml").write_text("_target_: my_module.Mine\nk: ${k}\n")
    (home / "fail").touch()
    words = [*IT, "training.tokens=4096", f"hydra.launcher.workers={workers}"]
    words += ["--config-dir", "my_conf", "allocator=mine,token_choice"]
    done = launches.run(home, *words)
    assert done.code == 2 and "RuntimeError: the file says so" in one_line(done, 2)
    folder = home / "outputs/it"
    assert str(home) in json.loads((folder / "sweep.json").read_text())["search_path"]
    again = launches.run(elsewhere, "retry", str(folder))
    line = one_line(again, 1)
    assert "allocator._target_ is 'my_module.Mine', and there is no module 'my_module'" in line
    assert str(home) in line and "--trust" in line
    again = launches.run(home, "retry", "outputs/it")
    assert "RuntimeError: the file says so" in one_line(again, 2)
    (home / "fail").unlink()
    trusting = os.path.relpath(folder, elsewhere), "--trust"
    again = launches.run(elsewhere, "retry", *trusting)
    assert (again.code, again.err) == (0, "") and "1 run to train" in again.out
    assert "it: 1 of 1 runs are finished" in again.out
    assert not (elsewhere / "outputs").exists()
    assert "no run has failed or was lost" in launches.run(elsewhere, "retry", str(folder)).out


@pytest.mark.slow
def test_retry_goes_on_with_lost_runs(launches: Launches, tmp_path: Path) -> None:
    launch = launches.start(tmp_path, *TWO_RUNS, OFTEN)
    folder = tmp_path / "outputs/it"
    until(lambda: len(checkpoints(folder)) >= 2 and trained(folder) > 5000, "checkpoints")
    launch.send(signal.SIGKILL)
    launch.wait()
    again = launches.run(tmp_path / "elsewhere", "retry", str(folder))
    assert again.code == 0
    assert logs(folder).count("resumed at") >= 1
    for run in (folder / "runs").iterdir():
        counted = [row["tokens"] for row in rows(run)]
        assert counted == sorted(set(counted))


def test_a_manifest_without_a_search_path_is_read(tmp_path: Path) -> None:
    launch = {"command": "", "time": "", "host": "", "pid": 1, "launcher": {}, "packs": []}
    old = {"version": 2, "name": "it", **launch, "points": [], "earlier": [launch]}
    files.write_json(tmp_path / "sweep.json", old)
    assert [launch.search_path for launch in manifest.read(tmp_path).launches] == [[], []]
