"""What parts that run our own code share."""

import importlib.util
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_sweeps.engine.device import settle
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.training.listener import Listener
from tests.gpu.emulated import branches_of_cuda
from tests.support.small import Quiet, small_run, train_pack

from . import place
from .place import Place
from .stubs import stub


def main(measure: Callable[[Place], None]) -> None:
    """Run a part of ours; in a rehearsal the CPU takes CUDA's branches."""
    place.main(lambda here: _measured(here, measure))


def _measured(here: Place, measure: Callable[[Place], None]) -> None:
    if importlib.util.find_spec("datasets") is None:
        stub("datasets")  # TransformerLens imports it, and nothing here loads any
    settle(deterministic=False)
    with as_on_cuda(here):
        measure(here)


@contextmanager
def as_on_cuda(here: Place) -> Generator[None]:
    """Within it CUDA's branches are taken, whatever the device."""
    if not here.rehearsal:
        yield
        return
    with branches_of_cuda():
        yield


def words(here: Place) -> list[str]:
    """What every run is told of where it trains."""
    if here.rehearsal:  # as `auto` is on CUDA
        return ["device=cpu", "training.precision=bfloat16"]
    return ["device=cuda", "training.precision=auto"]


def trained(
    here: Place, several: Mapping[Path, Sequence[str]], display: Listener | None = None
) -> list[Run]:
    """Train runs in one pack, each in a folder; raises what one of them raised."""
    runs = [small_run(folder, *words(here), *options) for folder, options in several.items()]
    for outcome in train_pack(runs, display or Quiet()):
        if not isinstance(outcome, Result):
            raise outcome
    return runs


def fvu(run: Run) -> float:
    """Of a finished run."""
    result: Any = run.files.result_of(run.config)
    return result.metrics["fvu"]
