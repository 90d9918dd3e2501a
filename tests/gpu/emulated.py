"""Trains methods as CUDA would, in bfloat16 on a CPU, beside the CPU's own way: are they alike?

`python -m tests.gpu.emulated FOLDER SEEDS [METHOD ...]` prints a JSON object for each method, seed
and way of the accelerator: the products of activations pair by pair, or as matrices.
"""

import json
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from sae_sweeps.record.result import Result
from tests.support.small import small_run, train

from .sizes import ALLOCATED, PENALISED

METHODS = (*ALLOCATED, *PENALISED)
LENGTH = (
    *("k=16", "d_sae=1024", "stream.batch_tokens=1024", "stream.chunk_tokens=32768"),
    *("stream.calibration_tokens=16384", "training.tokens=327680"),
    *("evaluation.tokens=32768", "evaluation.ce_tokens=0"),
)
PREDICATES = ("engine.device.looks_whole", "engine.device.has_fused_kernels")
HERE = ("training.pack.looks_whole", "training.saving.looks_whole")


@contextmanager
def branches_of_cuda() -> Generator[None]:
    """Within it a CPU takes the branches that CUDA takes."""
    with ExitStack() as patched:
        for name in (*PREDICATES, *HERE):
            patched.enter_context(patch(f"sae_sweeps.{name}", return_value=True))
        yield


def figures(folder: Path, *words: str, length: tuple[str, ...] = LENGTH) -> dict[str, float]:
    """What a run comes to, as this process computes."""
    [outcome] = train(small_run(folder, *length, *words))
    assert isinstance(outcome, Result), outcome
    return outcome.metrics


def as_on_cuda(folder: Path, *words: str, length: tuple[str, ...] = LENGTH) -> dict[str, float]:
    """What a run comes to where the accelerator's branches are taken."""
    with branches_of_cuda():
        return figures(folder, "training.precision=bfloat16", *words, length=length)


def compared(
    folder: Path, method: str, seed: int, length: tuple[str, ...] = LENGTH
) -> Iterator[dict[str, Any]]:
    """How far the accelerator's ways end from the CPU's."""
    words = [f"method={method}", f"seed={seed}"]
    own = figures(folder / "cpu", *words, length=length)
    for engine in ("sparse", "dense") if method in ALLOCATED else ("auto",):
        other = as_on_cuda(folder / engine, *words, f"engine={engine}", length=length)
        yield {
            "method": method,
            "seed": seed,
            "engine": engine,
            "fvu": own["fvu"],
            "fvu_percent": 100 * (other["fvu"] / own["fvu"] - 1),
            "l0": own["l0"],
            "l0_difference": other["l0"] - own["l0"],
        }


def main() -> None:
    folder, seeds, methods = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] or METHODS
    for seed in range(seeds):
        for method in methods:
            for row in compared(folder / f"{method}-{seed}", method, seed):
                sys.stdout.write(json.dumps(row) + "\n")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
