"""The two sets of activations on which `quality` compares SAEs, made once.

`embedded`: the embedded model's at `blocks.1.hook_resid_post`, without BOS, as runs see them; 1,024
latents. `synthetic`: sums of 6,000 sparse directions in 256 dimensions, 30 a token on average, as
frequent as Zipf's law of exponent 1.1 with shift 8 says, in groups of eight that fire together
(correlation 0.5), with magnitudes of a heavy tail (sigma 1), an offset and noise; 2,048 latents,
hence fewer than there are directions.

A set is two files of unscaled float32 activations, [tokens, d_in]: `train.npy` in the order in
which a stream with the default seed hands tokens out, shuffled within 32,768 tokens, and
`held_out.npy`. Every contender goes over `train.npy` once; peers in the file's order, ours in an
order of all tokens that `stream.seed` rules.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_sweeps.stream.harvest import Harvest
from tests.support.small import run_of


@dataclass(frozen=True)
class ActivationSet:
    """What a set is made from, and the SAEs that are trained on it."""

    name: str
    tokens: int
    batch: int
    d_in: int
    d_sae: int
    words: tuple[str, ...]
    """what makes its activations, in the command line's words"""
    held_out: int = 32768

    def folder(self, home: Path) -> Path:
        """Where its files are."""
        return home / "sets" / self.name

    def train(self, home: Path) -> Path:
        """The file of training tokens."""
        return self.folder(home) / "train.npy"

    def held(self, home: Path) -> Path:
        """The file of held-out tokens."""
        return self.folder(home) / "held_out.npy"

    def facts(self, home: Path) -> dict[str, Any]:
        """What a peer is told."""
        files = {"train": str(self.train(home)), "held_out": str(self.held(home))}
        return files | {"batch": self.batch, "d_in": self.d_in, "d_sae": self.d_sae}


SETS = {
    "embedded": ActivationSet(
        "embedded", 655_360, 1024, 128, 1024, ("target_model=embedded", "data=embedded")
    ),
    "synthetic": ActivationSet(
        *("synthetic", 614_400, 2048, 256, 2048),
        (
            *("target_model=synthetic", "target_model.d_in=256", "target_model.features=6000"),
            *("target_model.l0=30", "target_model.exponent=1.1", "target_model.shift=8"),
            *("target_model.magnitude_sigma=1", "target_model.correlation=0.5"),
            *("target_model.offset=4", "target_model.noise=1"),
            *("target_model.train_tokens=614400", "target_model.held_out_tokens=32768"),
        ),
    ),
}


def made(home: Path, name: str) -> ActivationSet:
    """The set, whose files are there."""
    wanted = SETS[name]
    if not wanted.held(home).exists():
        make(wanted, home)
    return wanted


def make(wanted: ActivationSet, home: Path) -> None:
    """Write a set's files; the last one only when all of it is there."""
    sizes = f"stream.batch_tokens={wanted.batch}", f"training.tokens={wanted.tokens}"
    words = *wanted.words, *sizes, "tracking=off", f"evaluation.tokens={wanted.held_out}"
    config = run_of(home, *words, "evaluation.ce_tokens=0", "device=cpu").config
    wanted.folder(home).mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(1) as pool:
        harvest = Harvest([config], torch.device("cpu"), pool)
        stream = harvest.stream(config)
        parts: list[Tensor] = []
        for index in range(-(-wanted.tokens // stream.chunk_tokens)):
            chunk = harvest.begin(index, [stream], pool)
            chunk.wait()
            parts.append(stream.unscaled(chunk.take(stream)))
    _write(wanted.train(home), torch.cat(parts)[: wanted.tokens])
    _write(wanted.held(home), stream.unscaled(stream.held_out))


def _write(path: Path, acts: Tensor) -> None:
    temporary = path.with_suffix(".part.npy")
    np.save(temporary, acts.numpy())
    temporary.replace(path)


def training_words(wanted: ActivationSet, home: Path) -> Sequence[str]:
    """How a run of ours is told to train on a set, all else as by default."""
    return (
        *("target_model=activations", f"target_model.path={wanted.train(home)}"),
        *(f"target_model.held_out_path={wanted.held(home)}", f"d_sae={wanted.d_sae}"),
        *(f"training.tokens={wanted.tokens}", f"stream.batch_tokens={wanted.batch}"),
        *(f"evaluation.tokens={wanted.held_out}", "evaluation.ce_tokens=0"),
        *("tracking=off", "device=cpu", "threads=1"),
    )
