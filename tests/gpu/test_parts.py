"""What parts make of what they see, where a rehearsal on a CPU cannot show it."""

import io
import json
import warnings
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.support.small import small_run

from .parts import sweep
from .parts.place import Place
from .parts.steps import waits
from .parts.sweep import Watch


def test_waits_alone_are_counted() -> None:
    def work() -> None:
        for text in (
            "called a synchronizing CUDA operation (Triggered internally)",
            "Synchronization debug mode is a prototype and sees not all synchronizing operations",
            "called a synchronizing CUDA operation (Triggered internally)",
        ):
            warnings.warn(text, UserWarning, stacklevel=1)

    found = waits(Place(rehearsal=True, out=io.StringIO()), work)
    assert len(found) == 2
    assert all(place.startswith("test_parts.py:") for place in found)


def test_what_a_measurement_raises_is_told_and_others_go_on() -> None:
    out = io.StringIO()
    here = Place(rehearsal=True, out=out)
    for number in range(3):
        with here.cell(number=number):
            here.tell(number=number, ms=1 / (number - 1))
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert (first["ms"], third["ms"]) == (-1.0, 1.0)
    assert second["number"] == 1
    assert second["error"].strip().endswith("ZeroDivisionError: division by zero")


def test_a_sweep_s_training_is_timed_without_its_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs with two chunks of one batch each; one second passes between two events."""
    monkeypatch.setattr(sweep, "time", Mock(perf_counter=Mock(side_effect=range(100))))
    words = "stream.batch_tokens=512", "stream.chunk_tokens=512", "training.tokens=1024"
    watch = Watch(2, small_run(tmp_path, *words).config)
    figures = {"l0": 1.0, "fvu": 1.0}
    watch.started(2048, ["first", "second"])
    for run in (0, 1):
        watch.advance(run, 512)
        watch.metrics(run, figures)  # at 0 and 1
    for run in (0, 1):
        watch.advance(run, 512)  # the first at 2
        watch.metrics(run, figures)  # at 3 and 5
        watch.finished(run, "finished")  # at 4 and 6
    assert watch.training_s == 5 - 2 - 1
    assert watch.finishing_s == 2
