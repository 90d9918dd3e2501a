"""Precomputed activations from a file: no model, hence no cross-entropy."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.engine.host import sent
from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.interfaces import Data, Splice, SplicedLosses, Split, TargetModel

HELD_OUT_SHARE = 0.1
"""Share of `path`, at its end, that is held out where no `held_out_path` is given."""


@final
class Activations(TargetModel):
    """An .npy or .safetensors array [tokens, d_in], or [rows, seq, d_in] token by token.

    Files are mapped, not read: only the rows asked for enter memory.

    Raises:
        ConfigError: the file is missing, of another kind, or its array of another shape.
    """

    has_loss = False
    tokens_per_row = 1

    def __init__(
        self, data: Data, device: torch.device, *, path: str, held_out_path: str | None
    ) -> None:
        self.device = device
        train = _open("target_model.path", path)
        if held_out_path is None:
            cut = train.shape[0] - round(train.shape[0] * HELD_OUT_SHARE)
            train, held_out = train[:cut], train[cut:]
        else:
            held_out = _open("target_model.held_out_path", held_out_path)
        if held_out.shape[1] != train.shape[1]:
            raise ConfigError(
                f"target_model.held_out_path holds activations of width {held_out.shape[1]}, "
                f"target_model.path of width {train.shape[1]}."
            )
        self.splits = {"train": train, "held_out": held_out}
        self.d_in = train.shape[1]
        self.description = {"model_name": None, "hook_name": None, "dataset_path": Path(path).name}

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.target_model import judging

        yield from judging.activation_files_exist(config)

    @staticmethod
    def width(config: Mapping[str, Any]) -> int | None:
        from sae_sweeps.target_model import facts

        return facts.width_of_file(config["target_model"]["path"])

    def row_count(self, split: Split) -> int:
        return self.splits[split].shape[0]

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        # As they are stored, since half precision takes half the time, to where casting takes none.
        return sent(self.splits[split][rows], self.device).float()

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        raise RuntimeError("precomputed activations have no model to run")


def _open(key: str, path: str) -> Float[Tensor, "tokens d_in"]:
    place = Path(path).expanduser()
    read = READERS.get(place.suffix)
    if read is None:
        raise ConfigError(f"{key} is {path!r}: expected a file .npy or .safetensors.")
    if not place.is_file():
        raise ConfigError(f"{key} is {path!r}: there is no such file.")
    try:
        array = read(place)
    except Exception as error:  # numpy, torch and safetensors each have their own for a bad file
        raise ConfigError(f"{key} is {path!r}: it cannot be read ({one_line(error)}).") from error
    if array.ndim not in (2, 3) or not array.is_floating_point() or array.numel() == 0:
        shape = tuple(array.shape)
        raise ConfigError(
            f"{key} is {path!r}: it holds {array.dtype} of shape {shape}, "
            "expected floats [tokens, d_in] or [rows, seq, d_in]."
        )
    return array.flatten(0, -2)


def _map_npy(path: Path) -> Tensor:
    # Copy-on-write keeps torch from warning of a read-only array; nothing ever writes to it.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _map_safetensors(path: Path) -> Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if len(names) != 1:
            raise ValueError(f"{len(names)} tensors, expected one")
        return file.get_tensor(names[0])


READERS = {".npy": _map_npy, ".safetensors": _map_safetensors}
