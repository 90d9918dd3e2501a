"""No data: for target models that bring their activations along."""

from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from sae_sweeps.interfaces import Data, Split


@final
class NoData(Data):
    """No rows."""

    def __init__(self) -> None:
        pass

    def rows(self, split: Split, tokenizer: Any) -> Int[Tensor, "rows seq"]:
        return torch.zeros(0, 0, dtype=torch.int64)
