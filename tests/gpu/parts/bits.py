"""Whether runs end in the same weights, bit for bit: in company, alone, again, and resumed."""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sae_sweeps.engine.device import settle
from sae_sweeps.record.run import Run
from tests.gpu.runs import METHODS
from tests.support.interrupting import OFTEN, Interrupted, Interrupting

from .ours import main, trained
from .place import Place

BATCHES = 12
LATENTS, TOY_LATENTS = 16_384, 128
"""Enough that pairs are listed."""


def measure(here: Place) -> None:
    """Without and with PyTorch's deterministic ways."""
    for deterministic in (False, True):
        with here.cell(what="all", deterministic=deterministic):
            compared(here, deterministic)
    settle(deterministic=False)


def options(here: Place, method: str, deterministic: bool) -> list[str]:
    """Of a short run; in a rehearsal without the embedded model, which takes a second to load."""
    batch, latents = (128, TOY_LATENTS) if here.rehearsal else (2048, LATENTS)
    return [
        *(f"method={method}", f"deterministic={str(deterministic).lower()}", f"d_sae={latents}"),
        *("k=16", f"stream.batch_tokens={batch}", f"stream.chunk_tokens={4 * batch}"),
        *(f"stream.calibration_tokens={batch}", f"training.tokens={BATCHES * batch}"),
        *(f"evaluation.tokens={batch}", "evaluation.ce_tokens=0"),
        f"training.dead_window_tokens={2 * batch}",  # some die, and the aux loss has work
        *(["target_model=synthetic"] if here.rehearsal else []),
    ]


def compared(here: Place, deterministic: bool) -> None:
    """Hashes of the weights of each method's run, beside those of the first time."""
    every = {method: options(here, method, deterministic) for method in METHODS}
    first = hashes(lambda home: trained(here, within(home, every)))
    ways: dict[str, Callable[[Path], Sequence[Run]]] = {
        "again": lambda home: trained(here, within(home, every)),
        "alone": lambda home: [
            run
            for folder, own in within(home, every).items()
            for run in trained(here, {folder: own})
        ],
        "resumed": lambda home: resumed(here, within(home, every)),
    }
    differing = 0
    for way, train in ways.items():
        others = list(METHODS)  # what cannot be trained is not the same
        with here.cell(what=way, deterministic=deterministic):
            found = zip(METHODS, first, hashes(train), strict=True)
            others = [method for method, before, now in found if before != now]
            here.tell(what=way, deterministic=deterministic, differing=others)
        differing += len(others)
    here.tell(what="all", deterministic=deterministic, differing=differing)


def within(home: Path, every: Mapping[str, list[str]]) -> dict[Path, list[str]]:
    """A folder for each."""
    return {home / name: own for name, own in every.items()}


def resumed(here: Place, every: Mapping[Path, Sequence[str]]) -> list[Run]:
    """Stopped in the middle of the pack, and gone on with from checkpoints."""
    often = {folder: [*own, OFTEN] for folder, own in every.items()}
    with suppress(Interrupted):
        trained(here, often, Interrupting(len(every) // 2, BATCHES // 2))
    return trained(here, often)


def hashes(train: Callable[[Path], Sequence[Run]]) -> list[str]:
    """Of the weights of runs that are trained in a folder of their own."""
    with tempfile.TemporaryDirectory() as home:
        runs = train(Path(home))
        return [hashlib.sha256(run.files.weights.read_bytes()).hexdigest() for run in runs]


if __name__ == "__main__":
    main(measure)
