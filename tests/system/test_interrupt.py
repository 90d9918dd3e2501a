"""Signals: who hears them when, and that a run that heard one goes on as if nothing had been."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.system import interrupt
from sae_sweeps.system.interrupt import Interrupted, check, deferred, listening, postponed, received
from sae_sweeps.training import evaluation
from tests.support.launches import left_by_run
from tests.support.small import Quiet, small_run, train, train_pack

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2]


def send(signum: int) -> None:
    """Send this process a real signal; Python has handled it when this returns."""
    os.kill(os.getpid(), signum)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Nothing stays of a test, and every test finds handlers that ignore nothing."""
    before = {signum: signal.signal(signum, signal.default_int_handler) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def raises_elsewhere(postpone: bool = False) -> bool:
    """Say whether `check` raises in another thread."""
    found: list[bool] = []

    def look() -> None:
        try:
            if postpone:
                with postponed():
                    check()
            else:
                check()
            found.append(False)
        except Interrupted:
            found.append(True)

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found[0]


# --- Who hears a signal --------------------------------------------------------------------


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_raises_at_once(signum: int) -> None:
    with listening():
        with pytest.raises(Interrupted):
            send(signum)
        assert (received() or [0])[0] == signum
        assert raises_elsewhere()
    assert received() is None and not raises_elsewhere()
    check()


@pytest.mark.parametrize("signum", SIGNALS)
def test_where_it_is_deferred_only_a_check_raises(signum: int) -> None:
    with listening(), deferred():
        assert received() is None and not raises_elsewhere()
        send(signum)
        time.sleep(0.05)
        found = received()
        assert found is not None and found[0] == signum and 0.05 <= found[1] < 5
        assert raises_elsewhere() and not raises_elsewhere(postpone=True)
        with postponed():
            check()
            assert raises_elsewhere()  # that is this thread's matter
        with pytest.raises(Interrupted):
            check()


def test_it_is_raised_again_where_it_was_not_heard_yet() -> None:
    with listening():
        with deferred():
            send(signal.SIGTERM)
        with pytest.raises(Interrupted):
            send(signal.SIGTERM)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_who_leaves_is_not_disturbed_by_further_signals(second: int) -> None:
    """A terminal's Ctrl-C reaches a worker twice: as SIGINT, and as its parent's SIGTERM."""
    with listening():
        with pytest.raises(Interrupted):
            send(signal.SIGINT)
        send(second)
        with deferred():
            send(second)
        send(second)


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_ctrl_c_ends_at_once(first: int) -> None:
    with listening(), deferred():
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_wish_to_be_requeued_is_remembered_before_others() -> None:
    with listening(), deferred():
        send(signal.SIGTERM)
        time.sleep(0.05)
        send(signal.SIGUSR2)
        send(signal.SIGTERM)
        signum, seconds = received() or (0, 0.0)
    assert signum == signal.SIGUSR2 and seconds >= 0.05


def test_what_is_ignored_stays_ignored() -> None:
    """As SIGHUP after `nohup`, or SIGINT after a script's `&`."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with listening() as before:
        assert before[signal.SIGHUP] == signal.SIG_IGN
        send(signal.SIGHUP)
        check()
        assert received() is None
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


def test_handlers_come_back_however_the_block_ends() -> None:
    heard: list[int] = []
    for signum in SIGNALS:
        signal.signal(signum, lambda signum, _: heard.append(signum))
    with pytest.raises(ZeroDivisionError), listening() as before:
        assert callable(before[signal.SIGUSR2])
        raise ZeroDivisionError
    for signum in SIGNALS:
        send(signum)
    assert heard == SIGNALS


# --- In training ---------------------------------------------------------------------------


class Sending(Quiet):
    """Sends a signal some time after a run got so far; keeps when."""

    def __init__(self, tokens: int, delay_s: float, signum: int = signal.SIGTERM) -> None:
        self.left, self.delay_s, self.signum = tokens, delay_s, signum
        self.sent = 0.0

    def started(self, total_tokens: int, titles: list[str]) -> None:
        self.advance(0, 0)

    def advance(self, run: int, tokens: int) -> None:
        self.left -= tokens
        if self.left <= 0 and not self.sent:
            self.sent = time.monotonic()
            threading.Timer(self.delay_s, self._send).start()

    def _send(self) -> None:
        self.sent = time.monotonic()
        send(self.signum)


PLACES = {
    "training": ([], 1024, 0.0, range(1024, 4096)),
    "measure": (["evaluation.tokens=30000", "evaluation.ce_tokens=0"], 10**9, 0.0, [4096]),
    "cross_entropy": (["evaluation.tokens=8192", "evaluation.ce_tokens=8192"], 10**9, 0.0, [4096]),
    "kl": (["fine_tune=kl", "fine_tune.tokens=2048"], 4096 + 512, 0.0, range(4608, 6144)),
    "harvest": (
        [*("stream.chunk_tokens=32768", "training.tokens=36864"), "stream.batch_tokens=4096"],
        *(0, 0.1, [0]),
    ),
}
"""Overrides, the tokens after which to wait, how long in seconds, and where it then stands.

Functions of the evaluation send the signal themselves, as they begin.
"""


def last_position(run: Run) -> int:
    saved = sorted((run.folder / "checkpoint").glob("step-*"))
    return int(saved[-1].stem.removeprefix("step-")) if saved else 0


@pytest.mark.parametrize(
    "place",
    [
        "training",
        *(
            pytest.param(place, marks=pytest.mark.slow)
            for place in ("measure", "cross_entropy", "kl", "harvest")
        ),
    ],
)
def test_a_signal_is_heard_at_once_and_changes_nothing(
    place: str,
    tmp_path: Path,
    record_property: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, tokens, delay_s, positions = PLACES[place]
    run, undisturbed = (small_run(tmp_path / name, *words) for name in ("a", "b"))
    display = Sending(tokens, delay_s)
    if hasattr(evaluation, place):
        function = getattr(evaluation, place)

        def sending(*given: Any) -> Any:
            display.advance(0, 10**9)
            return function(*given)

        monkeypatch.setattr(evaluation, place, sending)
    with listening(), pytest.raises(Interrupted):
        train_pack([run], display)
    monkeypatch.undo()
    seconds = time.monotonic() - display.sent
    record_property("seconds", seconds)  # pyright: ignore[reportCallIssue]
    assert seconds < 5  # 0.1 s where nothing else runs
    assert last_position(run) in positions
    log = (run.folder / "run.log").read_text()
    assert f"left at {last_position(run)} tokens" in log and "after SIGTERM" in log
    steps: list[int] = []

    class Counting(Quiet):
        def advance(self, run: int, tokens: int) -> None:
            steps.append(tokens)

    before = last_position(run)
    assert isinstance(train_pack([run], Counting())[0], Result)
    assert before + sum(steps) == undisturbed.config.total_tokens
    assert isinstance(train(undisturbed)[0], Result)
    ours, theirs = (left_by_run(each.folder) for each in (run, undisturbed))
    assert ours.weights == theirs.weights
    assert ours.rows == theirs.rows
    assert ours.result == theirs.result


@pytest.mark.slow
def test_every_member_is_saved_where_it_stands(tmp_path: Path) -> None:
    names = [["method=topk"], ["method=gated"], ["method=mutual_choice"]]
    runs, undisturbed = (
        [small_run(tmp_path / place, *words) for words in names] for place in ("a", "b")
    )
    with listening(), pytest.raises(Interrupted):
        train_pack(runs, Sending(2048, 0.0, signal.SIGUSR2))
    assert 2048 <= sum(map(last_position, runs)) < 3 * 4096
    assert all("after SIGUSR2" in (run.folder / "run.log").read_text() for run in runs)
    train(*runs)
    train(*undisturbed)
    for run, other in zip(runs, undisturbed, strict=True):
        assert left_by_run(run.folder) == left_by_run(other.folder)


def test_who_waits_for_a_lock_hears_signals(tmp_path: Path) -> None:
    from filelock import FileLock

    run = small_run(tmp_path)
    run.folder.mkdir(parents=True)
    display = Sending(0, 0.2)
    with FileLock(run.folder / ".lock"), listening(), pytest.raises(Interrupted):
        train_pack([run], display)
    assert time.monotonic() - display.sent < 5
    assert [path.name for path in run.folder.iterdir()] == [".lock"]


def test_listening_forgets_earlier_signals() -> None:
    for _ in range(2):
        with listening():
            check()
            with pytest.raises(Interrupted):
                send(signal.SIGTERM)
    assert interrupt.received() is None
