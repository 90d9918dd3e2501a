"""A run's time is that of all its attempts."""

import time
from itertools import count

import pytest

from sae_sweeps.training.clock import Clock


def test_attempts_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, cpu = count(100.0, 2.0), count(7.0, 0.5)
    monkeypatch.setattr(time, "monotonic", lambda: next(wall))
    monkeypatch.setattr(time, "process_time", lambda: next(cpu))
    first = Clock()
    assert first.read() == {"seconds": 2.0, "cpu_seconds": 0.5}
    saved = first.read() | {"last_row": {}}
    second = Clock()
    second.resume(saved)
    assert second.read() == {"seconds": 6.0, "cpu_seconds": 1.5}
    assert second.read() == {"seconds": 8.0, "cpu_seconds": 2.0}


def test_a_checkpoint_that_knows_no_cpu_time_counts_from_there() -> None:
    clock = Clock()
    clock.resume({"seconds": 60.0})
    now = clock.read()
    assert 60 <= now["seconds"] < 61 and 0 <= now["cpu_seconds"] < 1
