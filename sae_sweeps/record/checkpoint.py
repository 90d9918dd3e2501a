"""Checkpoints of a run in training: what resuming needs, in files that no crash can tear."""

import json
import logging
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_sweeps.errors import one_line
from sae_sweeps.record.folder import CHECKPOINT_VERSION, RunFolder
from sae_sweeps.system.files import replacing

logger = logging.getLogger(__name__)

KEPT = 2
"""The last one, and one before it in case the last is damaged."""


@dataclass(frozen=True)
class Checkpoint:
    """A run's state between two batches."""

    identity: str
    """of the run's config: another run's state is of no use"""
    tokens: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """everything else, as JSON"""


def save(folder: RunFolder, checkpoint: Checkpoint) -> None:
    """Write a run's state, then remove all but the last two.

    Raises:
        OSError: the disk does not take it; the checkpoints before are still there.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    header = {
        "version": CHECKPOINT_VERSION,
        "identity": checkpoint.identity,
        "tokens": checkpoint.tokens,
        "crc32": _crc32(tensors),
        "state": checkpoint.state,
    }
    place = folder.step(checkpoint.tokens)
    with replacing(place) as path:
        try:
            save_file(tensors, path, {"checkpoint": json.dumps(header)})
        except SafetensorError as error:  # what it makes of a full disk
            raise OSError(f"{place}: {one_line(error)}") from error
    for path in folder.steps[:-KEPT]:
        path.unlink()


def latest(
    folder: RunFolder, identity: str, tell: Callable[[str], None] = lambda _: None
) -> Checkpoint | None:
    """Read the last whole checkpoint of this identity; damaged ones are passed over, and named.

    Args:
        tell: is given a line for each that is passed over, as the package's log is.
    """
    for path in reversed(folder.steps):
        try:
            return _read(path, identity)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            text = f"{path} is passed over: {one_line(error)}"
            logger.warning("%s", text)
            tell(text)
    return None


def clear(folder: RunFolder) -> None:
    """Remove all checkpoints, of a run that is finished or starts anew."""
    for path in folder.steps:
        path.unlink()


def _read(path: Path, identity: str) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["checkpoint"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if header["version"] != CHECKPOINT_VERSION:
        text = f"it has version {header['version']}, expected {CHECKPOINT_VERSION}"
        raise ValueError(text)
    if header["identity"] != identity:
        raise ValueError("it is another run's, or of other data")
    if header["crc32"] != _crc32(tensors):
        raise ValueError("its content is damaged")
    return Checkpoint(identity, header["tokens"], tensors, header["state"])


def _crc32(tensors: dict[str, Tensor]) -> int:
    total = 0
    for name in sorted(tensors):
        content = tensors[name].reshape(-1).view(torch.uint8).numpy()
        total = zlib.crc32(content.data, total)
    return total
