"""Tracking under faults: training neither fails nor waits, no row is lost, and one line says so.

Real launches with real W&B clients, whose server is on the loopback interface; each of them meets
one fault, and is compared with an undisturbed launch without tracking.
"""

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest

from tests.support.launches import SYNTHETIC, Launch, Launches, Left, launches, left, until
from tests.support.slow_model import SLOW_TARGET
from tests.support.wandb_backend import Backend
from tests.support.wandb_place import LIMITS, MAIN, SOON, WORDS, Place

__all__ = ["launches"]  # a fixture

pytestmark = pytest.mark.xdist_group("tracking")

Length = tuple[str, ...]
"""Options that say how long a launch trains."""
BRIEF, LONG = (SYNTHETIC, "training.tokens=16384"), (*SLOW_TARGET, "training.tokens=49152")
"""Of some seconds where something is to happen midway."""
NO_SERVER = "http://127.0.0.1:9"
END_S = 6.0
"""Report and W&B's end after the last run's, on a busy machine; on a calm one 1.5 s."""
ANSWER_S = 1.0
"""What a slow server takes for an answer; a run has twenty, one after another."""
BUSY = 4
"""How much slower a machine may become while it is used for other things."""


Act = Callable[[Place], None]


def nothing(place: Place) -> None:
    """Disturb nothing."""


class Fault(NamedTuple):
    """What a launch meets."""

    before: Act = nothing
    midway: Act = nothing
    """What happens once the server has rows, or W&B's files where there is no server."""
    told: str = ""
    """What the line about it says; none says anything else."""
    costs_s: float = 0.0
    """What the end may take longer than with a W&B that works; nothing else may."""
    limits: Mapping[str, float] = MappingProxyType({})
    """Limits of time in place of those that hold by default."""
    kept: str = "server"
    """Who has all rows in the end: `server`, `disk` or, where neither can, `nobody`."""

    @property
    def length(self) -> Length:
        return BRIEF if self.midway is nothing else LONG


def refuse(status: int, what: str, seconds: float | None = None) -> Act:
    """Answer requests of some kind with a status, for some time."""

    def act(place: Place) -> None:
        until = time.monotonic() + (seconds or 1e9)
        place.backend.refuse = lambda name: (
            status if what in name and time.monotonic() < until else None
        )

    return act


def no_key(place: Place) -> None:
    del place.env["WANDB_API_KEY"]


def no_server(place: Place) -> None:
    place.env["WANDB_BASE_URL"] = NO_SERVER


def answers_after(seconds: float) -> Act:
    return lambda place: setattr(place.backend, "delay_s", seconds)


def slow(place: Place) -> None:
    """Slower than what `auto` takes for a server."""
    place.env["WANDB_MODE"] = "online"
    place.backend.delay_s = ANSWER_S


def dies(place: Place) -> None:
    place.backend.stop()


def dies_and_comes_back(place: Place) -> None:
    place.backend.stop()
    threading.Timer(1.0, place.backend.come_back).start()


def offline(place: Place) -> None:
    place.env["WANDB_MODE"] = "offline"


def signalled(signum: int) -> Act:
    """Send W&B's own process a signal."""

    def act(place: Place) -> None:
        for pid in place.services():
            os.kill(pid, signum)

    return act


def disk_is_full(place: Place) -> None:
    """W&B's own process can write no more, as with a full disk: `EFBIG` in place of `ENOSPC`."""
    for pid in place.services():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))


def limited(seconds: float) -> dict[str, float]:
    return {f"{LIMITS}:FINISH_LIMIT_S": seconds}


OFFLINE = "W&B: offline ("
QUICK = {
    "none": Fault(),
    "no key": Fault(no_key, told=f"{OFFLINE}no API key", kept="disk"),
    "no server": Fault(no_server, told=f"{OFFLINE}{NO_SERVER}: URLError", kept="disk"),
    "a server that never answers": Fault(
        answers_after(3600), told="TimeoutError", kept="disk", costs_s=2.0
    ),
    "401 from the start": Fault(refuse(401, ""), told=f"{OFFLINE}CommError: ", kept="disk"),
    "500 from the start": Fault(refuse(500, ""), told="answers 500", kept="disk"),
}
SLOW = {
    "429 at the start": Fault(refuse(429, "Upsert", 2.0), costs_s=6.0),
    "401 midway": Fault(
        midway=refuse(401, "file_stream"), told="refused rows: 401 Unauthorized", kept="disk"
    ),
    "403 midway": Fault(
        midway=refuse(403, "file_stream"), told="refused rows: 403 Forbidden", kept="disk"
    ),
    "429 midway": Fault(midway=refuse(429, "file_stream", 2.0), costs_s=10.0),
    "500 midway": Fault(midway=refuse(500, "", 2.0), costs_s=10.0),
    "500 midway for good": Fault(
        midway=refuse(500, ""),
        told="did not take all rows in 3 s",
        limits=limited(3.0),
        costs_s=3.0,
        kept="disk",
    ),
    "the server dies": Fault(
        midway=dies,
        told="did not take all rows in 3 s",
        limits=limited(3.0),
        costs_s=3.0,
        kept="disk",
    ),
    "the server dies and comes back": Fault(midway=dies_and_comes_back, costs_s=20.0),
    "every answer takes long": Fault(
        slow, limits={f"{LIMITS}:PROBE_LIMIT_S": ANSWER_S / 2}, costs_s=25.0
    ),
    "W&B's own process is killed": Fault(
        midway=signalled(signal.SIGKILL), told="W&B: its process is gone", costs_s=2.0
    ),
    "W&B's own process is killed again and again": Fault(
        midway=signalled(signal.SIGKILL),
        told="W&B: its process ends again and again",
        limits={f"{LIMITS}:REVIVALS": 0},
        costs_s=2.0,
        kept="nobody",
    ),
    "W&B's own process hangs": Fault(
        midway=signalled(signal.SIGSTOP),
        told=f"{OFFLINE}it was not done in time",
        limits=limited(3.0),
        costs_s=3.0,
        kept="nobody",
    ),
    "a full disk, online": Fault(midway=disk_is_full, told="file too large", costs_s=2.0),
    "a full disk, offline": Fault(
        offline, disk_is_full, "rows are missing in", costs_s=2.0, kept="nobody"
    ),
}
FAULTS = QUICK | SLOW


class Undisturbed(NamedTuple):
    """What a launch without tracking leaves."""

    runs: dict[str, Left]
    seconds: float


def timed(launch: Launch, began: float) -> float:
    assert launch.wait() == 0, launch.out + launch.err
    return time.monotonic() - began


def trained(sweep: Path) -> dict[str, Left]:
    """What runs left, less what they say of the tracker."""
    found = left(sweep)
    for run in found.values():
        del run.result["choices"]["tracking"]
    return found


def last_result(sweep: Path) -> float:
    """When the last run of a sweep ended."""
    return max(path.stat().st_mtime for path in (sweep / "runs").glob("*/result.json"))


@pytest.fixture(scope="module")
def undisturbed(
    launches: Launches, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Length], Undisturbed]:
    """Train without tracking, by the option that says how long; once each."""
    home = tmp_path_factory.mktemp("undisturbed")
    assert launches.run(home, "--version").code == 0  # by then everything is loaded

    @cache
    def train(length: Length) -> Undisturbed:
        home = tmp_path_factory.mktemp("undisturbed")
        began = time.monotonic()
        seconds = timed(launches.start(home, *WORDS, *length, "tracking=off"), began)
        return Undisturbed(trained(home / "outputs" / "it"), seconds)

    return train


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with Backend() as backend:
        yield Place(tmp_path, backend)


def is_midway(place: Place) -> bool:
    """Say whether rows have arrived; where there is no server, whether they are on disk."""
    if place.env.get("WANDB_MODE") != "offline":
        return len(place.at_server()) == 2 and all(place.at_server().values())
    logs = list((place.folder / "wandb").glob("*run-2*/*.wandb"))
    return len(logs) == 2 and all(log.stat().st_size > 2000 for log in logs)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_a_fault_costs_no_time_and_after_a_sync_no_row(
    name: str,
    launches: Launches,
    place: Place,
    undisturbed: Callable[[Length], Undisturbed],
) -> None:
    fault = FAULTS[name]
    expected = undisturbed(fault.length)
    fault.before(place)
    began = time.monotonic()
    words, patches = (*WORDS, *fault.length), SOON | dict(fault.limits)
    place.launch = launches.start(place.home, *words, main=MAIN, env=place.env, patches=patches)
    if fault.midway is not nothing:
        until(lambda: is_midway(place), "row at W&B", 30)
        assert not place.launch.ended()
        fault.midway(place)
    seconds, ended = timed(place.launch, began), time.time()
    assert trained(place.folder) == expected.runs
    assert ended - last_result(place.folder) < END_S + fault.costs_s
    assert seconds < BUSY * expected.seconds + END_S + fault.costs_s
    lines = [line for line in place.launch.err.splitlines() if "W&B" in line or "wandb" in line]
    said = [line for line in lines if "W&B: online" not in line and "(as asked)" not in line]
    assert len(said) == bool(fault.told), said
    assert all(fault.told in line for line in said)
    if fault.kept == "server":
        assert place.at_server() == place.rows()
        return
    if fault.kept == "disk":
        assert place.on_disk() == place.rows()
    place.heal()
    synced = launches.run(place.home, "sync", "outputs/it", main=MAIN, env=place.env)
    assert (synced.code, synced.err) == (0, "")
    assert place.at_server() == place.rows()
