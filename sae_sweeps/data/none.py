"""No data: for target models that bring their activations along."""

from typing import Any, final

import numpy as np

from sae_sweeps.interfaces import Data, Rows, Split


@final
class NoData(Data):
    """No rows."""

    def __init__(self) -> None:
        pass

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        return Rows(np.zeros((0, 0), np.uint16))
