"""A run that has ended, well or not, keeps no memory that others of its pack have use for."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_sweeps.record.result import Result
from sae_sweeps.training.trainer import Trainer
from tests.support.small import small_run, train

SHORT, LONG = ("method=topk", "training.tokens=1024"), ("method=topk", "training.tokens=8192")
LACKS = "d_sae=96"
"""A run that fails in its second step."""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """What the short run held, which must be gone when the long one is near its end."""
    refs: list[weakref.ref[Any]] = []
    step = Trainer.step

    def watched(self: Trainer, x: Tensor, wanted: bool) -> dict[str, Tensor]:
        if self.given.tokens == 8192:
            if self.tokens >= 6144:
                gc.collect()
                assert refs and all(ref() is None for ref in refs), "it still holds memory"
            return step(self, x, wanted)
        if self.tokens == 0:
            refs.extend([weakref.ref(self), weakref.ref(self.sae.W_enc)])
        elif len(self.sae.W_dec) == 96:
            of_the_step = torch.zeros(1000)
            refs.append(weakref.ref(of_the_step))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return step(self, x, wanted)

    monkeypatch.setattr(Trainer, "step", watched)
    return refs


def test_a_finished_run_lets_go(tmp_path: Path, held: list[weakref.ref[Any]]) -> None:
    outcomes = train(small_run(tmp_path / "short", *SHORT), small_run(tmp_path / "long", *LONG))
    assert [type(outcome) for outcome in outcomes] == [Result, Result]
    assert len(held) == 2


def test_a_run_that_lacks_memory_takes_no_other_with_it(
    tmp_path: Path, held: list[weakref.ref[Any]]
) -> None:
    """Neither by its failure nor by what its traceback holds; its own log has that in full."""
    short = small_run(tmp_path / "short", *SHORT, LACKS)
    failed, result = train(short, small_run(tmp_path / "long", *LONG))
    assert isinstance(failed, torch.OutOfMemoryError) and isinstance(result, Result)
    assert len(held) == 3
    log = (short.folder / "run.log").read_text()
    assert "in watched" in log and "Tried to allocate 2.00 GiB" in log
    assert "out of memory" in (short.folder / "failed.json").read_text()
