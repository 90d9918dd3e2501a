"""The target model and the tokens that ship with the package (made by `build.py`)."""

import lzma
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).parent
MODEL = ROOT / "model"
TOKENS = ROOT / "tokens"
LICENSE = ROOT / "LICENSE-CPython.txt"
PROVENANCE = ROOT / "provenance.json"

BOS = 0
"""Id of `<|endoftext|>`, which opens every document and nothing else."""


def load_tokens(
    split: Literal["train", "held_out"],
) -> tuple[NDArray[np.uint16], NDArray[np.int64]]:
    """Return one split as a flat stream of ids and the position of each document's BOS in it."""
    raw = lzma.decompress((TOKENS / f"{split}.u16.xz").read_bytes())
    ids = np.frombuffer(raw, dtype="<u2").astype(np.uint16)
    return ids, np.flatnonzero(ids == BOS)
