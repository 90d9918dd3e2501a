"""The tokens that ship with the package: CPython's own source and documentation, split by document."""

from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_sweeps.embedded import BOS, load_tokens
from sae_sweeps.interfaces import Data


@final
class Embedded(Data):
    """Rows of BOS and `context_tokens` - 1 following tokens; the incomplete last row is left out."""

    def __init__(self, *, context_tokens: int) -> None:
        self.context_tokens = context_tokens

    def rows(self, split: Literal["train", "held_out"]) -> Int[Tensor, "rows seq"]:
        ids, _ = load_tokens(split)
        width = self.context_tokens - 1
        count = len(ids) // width
        text = ids[: count * width].reshape(count, width).astype(np.int64)
        return torch.nn.functional.pad(torch.from_numpy(text), (1, 0), value=BOS)
