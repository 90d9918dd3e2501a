"""Checkpoints that a thread writes are of the moment they were asked for, and one at a time."""

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from sae_sweeps.record import checkpoint
from sae_sweeps.record.checkpoint import Checkpoint, latest
from sae_sweeps.record.folder import RunFolder
from sae_sweeps.record.result import Result
from sae_sweeps.training.saving import Saving
from tests.support.interrupting import OFTEN, Interrupted, Interrupting
from tests.support.runs import assert_equal_runs
from tests.support.small import small_run, train, train_pack

LOG = logging.getLogger("tests.saving")
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def aside() -> Iterator[None]:
    with patch("sae_sweeps.training.saving.looks_whole", return_value=True):
        yield


class Disk:
    """Writes once it is let, or refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.let, self.full, self.wrote = threading.Event(), False, list[int]()
        self.save = checkpoint.save
        monkeypatch.setattr("sae_sweeps.record.checkpoint.save", self)

    def __call__(self, folder: RunFolder, saved: Checkpoint) -> None:
        assert threading.current_thread().name.startswith("checkpoint")
        assert self.let.wait(30)
        if self.full:
            raise OSError(28, "No space left on device")
        self.save(folder, saved)
        self.wrote.append(saved.tokens)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def state(tokens: int, weights: Tensor) -> Checkpoint:
    return Checkpoint("id", tokens, {"weights": weights}, {})


def saving(folder: Path) -> Saving:
    return Saving(RunFolder(folder), 0, CPU, LOG)


def test_what_is_written_is_what_was(disk: Disk, tmp_path: Path) -> None:
    one, weights = saving(tmp_path), torch.arange(5.0)
    one.if_due(lambda: state(10, weights))
    weights.zero_()
    one.if_due(lambda: pytest.fail("asked for while one is being written"))
    disk.let.set()
    one.settle()
    found = latest(RunFolder(tmp_path), "id")
    assert found is not None and found.tensors["weights"].equal(torch.arange(5.0))
    assert one.saved_tokens == 10


def test_runs_take_turns(disk: Disk, tmp_path: Path) -> None:
    one, other = saving(tmp_path / "one"), saving(tmp_path / "other")
    one.if_due(lambda: state(1, torch.ones(1)))
    other.if_due(lambda: pytest.fail("asked for out of turn"))
    disk.let.set()
    one.settle()
    other.if_due(lambda: state(2, torch.ones(1)))
    other.settle()
    assert disk.wrote == [1, 2]


def test_a_full_disk_is_told_and_tried_again(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one = saving(tmp_path)
    disk.full = True
    disk.let.set()
    one.if_due(lambda: state(1, torch.ones(1)))
    one.settle()
    assert one.saved_tokens == 0
    assert "training goes on: [Errno 28] No space left on device" in caplog.text
    disk.full = False
    one.if_due(lambda: state(2, torch.ones(1)))
    one.settle()
    assert (one.saved_tokens, disk.wrote) == (2, [2])


def test_who_cannot_make_a_checkpoint_leaves_the_turn_to_others(
    disk: Disk, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def full() -> Checkpoint:
        raise OSError(28, "No space left for rows")

    saving(tmp_path / "one").if_due(full)
    assert "No space left for rows" in caplog.text
    disk.let.set()
    other = saving(tmp_path / "other")
    other.if_due(lambda: state(2, torch.ones(1)))
    other.settle()
    assert disk.wrote == [2]


def test_interrupted_runs_go_on_to_the_same_end(tmp_path: Path) -> None:
    broken, through = (
        [small_run(tmp_path / name, f"method={method}", OFTEN) for method in ("topk", "gated")]
        for name in ("broken", "through")
    )
    assert all(isinstance(outcome, Result) for outcome in train(*through))
    with pytest.raises(Interrupted):
        train_pack(broken, Interrupting(0, 4))
    assert all(isinstance(outcome, Result) for outcome in train(*broken))
    for run, other in zip(broken, through, strict=True):
        assert "resumed at" in (run.folder / "run.log").read_text()
        assert "resumed at" not in (other.folder / "run.log").read_text()
        assert_equal_runs(run, other)
        assert run.files.steps == []
