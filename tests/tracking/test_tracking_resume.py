"""Tracking: W&B has each row of `metrics.jsonl` once, however often the run is killed and resumed.

Every attempt is a process of its own, with a real W&B client and a server on the loopback
interface; it is forked from one that has imported W&B.
"""

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.tracking.wandb import log_format, offline
from tests.support import wandb_attempt
from tests.support.fork_server import environment
from tests.support.launches import Launch, Launches, launches, until
from tests.support.processes import children
from tests.support.wandb_backend import HISTORY, Backend, ServedRun
from tests.support.wandb_offline import read as read_back

__all__ = ["launches"]  # a fixture

WANDB = [sys.executable, "-m", "wandb"]
ENDLESS = 10**6
TRAINING_S = {"offline": 1.0, "online": 2.0}
"""What an attempt has at most before it is killed: online, rows are sent once a second."""


class Place:
    """A sweep of one run, and the attempts at training it."""

    def __init__(self, folder: Path, backend: Backend, launches: Launches) -> None:
        self.sweep, self.home, self.backend = folder / "sweep", folder / "home", backend
        self.launches = launches
        self.run = wandb_attempt.run_in(self.sweep)
        self.env = environment() | backend.client(self.home)

    def start(
        self, mode: str, checkpoint: int, rows: int, pause: float = 0.0, width: int = 30
    ) -> Launch:
        """Start an attempt."""
        words = map(str, (self.sweep, mode, checkpoint, rows, pause, width))
        return self.launches.start(
            self.home, *words, main="tests.support.wandb_attempt", env=self.env
        )

    def train(self, mode: str, checkpoint: int, rows: int, **how: Any) -> None:
        """Make an attempt that comes to its end."""
        assert self.start(mode, checkpoint, rows, **how).wait(60) == 0

    def sync(self) -> None:
        """Upload as users do."""
        line = [*WANDB, "sync", str(self.sweep / "wandb")]
        subprocess.run(line, env=self.env, check=True, capture_output=True)

    def logs(self) -> list[Path]:
        """W&B's logs of all attempts that `wandb sync` may see, oldest first."""
        times: dict[Path, int] = {}
        for folder in (self.sweep / "wandb").glob("*run-2*"):
            with suppress(FileNotFoundError):  # set aside in between, as a whole
                times |= {log: log.stat().st_ctime_ns for log in folder.glob("run-*.wandb")}
        return sorted(times, key=times.__getitem__)

    def rows(self) -> list[dict[str, Any]]:
        """What W&B must have, from the run's own file."""
        lines = (self.run.folder / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines if line.endswith("}")]
        return [{"tokens_seen": row.pop("tokens"), **row} for row in rows]


@pytest.fixture
def place(tmp_path: Path, launches: Launches) -> Iterator[Place]:
    with Backend() as backend:
        yield Place(tmp_path, backend, launches)


def served(run: ServedRun) -> list[dict[str, Any]]:
    """The rows that the server has, less what W&B adds itself."""
    return [{k: v for k, v in row.items() if not k.startswith("_")} for row in run.rows()]


def only(place: Place) -> ServedRun:
    (run,) = place.backend.runs.values()
    return run


def killed(attempt: Launch, how: str) -> None:
    """End an attempt: by `kill -9` of all or of Python alone, or as a scheduler does."""
    # W&B's own process has a session of its own.
    everyone = [attempt.pid] if how == "python" else [*children(attempt.pid), attempt.pid]
    for pid in everyone:
        with suppress(ProcessLookupError):  # a child may just have ended by itself
            os.kill(pid, signal.SIGTERM if how == "term" else signal.SIGKILL)
    attempt.wait(20)


def kill_again_and_again(
    place: Place, rng: random.Random, how: str, modes: list[str]
) -> tuple[int, int]:
    """Kill one attempt per mode at a random moment; the last checkpoint and the most rows."""
    checkpoint = most = 0
    for number, mode in enumerate(modes):
        known = place.logs()
        attempt = place.start(mode, checkpoint, ENDLESS, pause=0.003)
        until(lambda known=known: place.logs() != known, "log")
        time.sleep(rng.uniform(0, TRAINING_S[mode]) if number != 2 else 0)
        assert not attempt.ended()
        killed(attempt, how)
        written = len(place.rows())
        checkpoint, most = rng.randint(checkpoint, written), max(most, written)
    return checkpoint, most


@pytest.mark.slow
@pytest.mark.parametrize("how", ["all", "python", "term"])
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_six_kills_at_any_moment_cost_no_row(place: Place, mode: str, how: str) -> None:
    rng = random.Random(f"{mode} {how}")
    checkpoint, most = kill_again_and_again(place, rng, how, [mode] * 6)
    place.train(mode, checkpoint, most + 200)
    place.sync()
    assert served(only(place)) == place.rows()
    assert len(place.rows()) == most + 200
    assert only(place).summary["final/l0"] == 3.0


@pytest.mark.slow
@pytest.mark.parametrize("last", ["offline", "online"])
def test_kills_online_and_offline_by_turns(place: Place, last: str) -> None:
    """The server's part of a run is unknown offline, so that the run is told whole in one apart."""
    rng = random.Random(last)
    modes = ["offline", "offline", "online", "online", "offline", "online", "offline", "offline"]
    checkpoint, most = kill_again_and_again(place, rng, "all", modes)
    place.train(last, checkpoint, most + 100)
    place.sync()
    id = (place.run.folder / "wandb_id.txt").read_text().strip()
    runs = place.backend.runs
    assert served(runs[id if last == "online" else f"{id}-offline1"]) == place.rows()
    assert set(runs) == ({id} if last == "online" else {id, f"{id}-offline1"})
    for run in runs.values():
        seen = [row["tokens_seen"] for row in served(run)]
        assert seen == sorted(set(seen))


def test_rows_that_a_summary_was_ahead_of_are_told(place: Place) -> None:
    place.train("online", 0, 80)
    run = only(place)
    history = run.streams[HISTORY]
    run.streams[HISTORY] = {line: history[line] for line in sorted(history)[:50]}
    assert run.summary["_step"] == 79
    place.train("online", 80, 120)
    assert served(only(place)) == place.rows()
    assert len(place.rows()) == 120


@pytest.mark.slow
def test_an_upload_during_training_doubles_no_row_later(place: Place) -> None:
    attempt = place.start("offline", 0, ENDLESS, pause=0.01)
    until(lambda: bool(place.logs()) and place.logs()[0].stat().st_size > 50_000, "log")
    place.sync()
    early = served(only(place))
    until(lambda: len(place.rows()) > 2 * len(early) + 200, "rows")
    killed(attempt, "all")
    most = len(place.rows())
    place.train("offline", most // 2, most)
    place.sync()
    first, second = place.backend.runs.values()
    assert 0 < len(early) < most and served(first) == early
    assert served(second) == place.rows() and second.id == f"{first.id}-offline1"


@pytest.mark.slow
def test_what_a_kill_leaves_of_a_log_can_be_synced(place: Place) -> None:
    """Cuts the logs of three attempts as kills do, one of them where a block ends in a record."""
    place.train("offline", 0, 60)
    for checkpoint, size in [(20, 7), (12, 32768), (18, 20_001)]:
        log = place.logs()[-1]
        assert log.stat().st_size > size
        os.truncate(log, size)
        place.train("offline", checkpoint, 60 if checkpoint != 18 else 70)
    place.sync()
    assert served(only(place)) == place.rows()
    assert len(place.rows()) == 70
    (empty,) = (place.sweep / "wandb" / offline.ASIDE).glob("*/*.wandb")
    assert empty.stat().st_size == 7


@pytest.mark.slow
def test_an_empty_log_of_before_an_online_attempt_stops_no_upload(place: Place) -> None:
    """A kill after W&B's start and before ours had put the offline logs aside."""
    place.train("offline", 0, 20)
    (log,) = place.logs()
    shutil.copytree(log.parent, log.parent.with_name(log.parent.name.removeprefix("offline-")))
    os.truncate(log, 7)
    place.train("offline", 10, 30)
    place.sync()
    assert served(only(place)) == place.rows() and only(place).id.endswith("-offline1")


def test_an_interrupted_run_says_so_and_ends_at_once(place: Place) -> None:
    attempt = place.start("online", 0, ENDLESS, pause=0.003)
    until(lambda: bool(place.backend.runs) and only(place).rows(), "row at the server")
    attempt.send(signal.SIGTERM)
    assert attempt.wait(10) == 1
    assert (only(place).preempting, only(place).exit_code) == (True, 1)
    assert served(only(place)) == place.rows()


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["server", "service"])
def test_an_interrupted_run_waits_for_nobody(place: Place, gone: str) -> None:
    attempt = place.start("auto", 0, ENDLESS, pause=0.003)
    until(lambda: bool(place.backend.runs) and only(place).rows(), "row at the server")
    if gone == "server":
        place.backend.stop()
    else:
        for pid in children(attempt.pid):
            os.kill(pid, signal.SIGTERM)
    start = time.monotonic()
    attempt.send(signal.SIGTERM)
    assert attempt.wait(20) == 1
    assert time.monotonic() - start < 2.0 + 3.0, "close was given 2 s"
    assert "Traceback" not in attempt.err


@pytest.mark.slow
def test_a_run_that_ended_online_goes_on_offline_under_its_id(place: Place) -> None:
    """As when a finished run is measured anew."""
    place.train("online", 0, 20)
    place.train("offline", 20, 20)
    place.sync()
    assert served(only(place)) == place.rows()
    assert len(place.logs()) == 2


def written(payloads: list[bytes], block: int) -> tuple[bytes, list[int]]:
    """Write a log, as LevelDB describes it; the log and where each record ends."""
    log, ends = bytearray(b":W&B\0\0\0"), list[int]()
    for payload in payloads:
        rest, first = payload, True
        while True:
            left = block - len(log) % block
            if left < 7:
                log += bytes(left)
                left = block
            chunk, more = rest[: left - 7], rest[left - 7 :]
            kind = bytes([{(1, 0): 1, (1, 1): 2, (0, 1): 3, (0, 0): 4}[first, bool(more)]])
            log += struct.pack("<IH", zlib.crc32(kind + chunk), len(chunk)) + kind + chunk
            first = False
            if not more:
                break
            rest = more
        ends.append(len(log))
    return bytes(log), ends


records = st.lists(st.binary(min_size=1, max_size=150), max_size=6)


@given(records)
def test_a_log_torn_at_any_byte_is_read_up_to_the_last_whole_record(payloads: list[bytes]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_format, "BLOCK", 64)
        log, ends = written(payloads, 64)
        for size in range(len(log) + 1):
            whole = [(end, p) for end, p in zip(ends, payloads, strict=True) if end <= size]
            assert list(log_format.whole_records(log[:size])) == whole


@given(records.filter(bool), st.data())
def test_a_wrong_byte_ends_the_reading(payloads: list[bytes], data: st.DataObject) -> None:
    log, ends = written(payloads, 32768)
    place = data.draw(st.integers(7, len(log) - 1))
    wrong = bytearray(log)
    wrong[place] ^= data.draw(st.integers(1, 255))
    whole = [(end, p) for end, p in zip(ends, payloads, strict=True) if end <= place]
    assert list(log_format.whole_records(bytes(wrong))) == whole


@pytest.mark.slow
def test_a_real_log_cut_anywhere_tells_its_last_row(place: Place) -> None:
    place.train("offline", 0, 60)
    (log,) = place.logs()
    content, run = log.read_bytes(), read_back(log.parent)
    assert offline.read(log) == offline.Fragment(log, len(content), True, 60 * wandb_attempt.STEP)
    assert len(run.rows) == 60 and len(content) > 32768
    for size in [*range(8), *range(8, len(content), 997), 32768]:
        log.write_bytes(content[:size])
        fragment = offline.read(log)
        log.write_bytes(content[: fragment.whole])
        rows = read_back(log.parent).rows if fragment.begun else []
        assert fragment.tokens == max((row["tokens_seen"] for row in rows), default=0)
        assert rows == run.rows[: len(rows)]


def test_a_log_that_is_still_written_is_left_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offline, "WRITER_LIMIT_S", 0.1)
    folder = place.sweep / "wandb" / "offline-run-20250101_000000-x"
    folder.mkdir(parents=True)
    log = folder / "run-x.wandb"
    log.write_bytes(b":W&B\0\0\0")
    with log.open("ab"):
        (fragment,) = offline.fragments(folder.parent, "x")
        offline.mend(fragment)
        assert log.exists()
    offline.mend(fragment)
    assert not folder.exists() and offline.fragments(folder.parent, "x") == []
