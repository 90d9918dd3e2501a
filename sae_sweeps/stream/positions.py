"""Which tokens of a target model's rows are trained and measured on, as its rows alone tell."""

from typing import get_args

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt
from torch import Tensor

from sae_sweeps.config.options import StreamOptions
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Split, TargetModel

SPLITS: tuple[Split, Split] = get_args(Split)
ROWS_AT_ONCE = 2**14
"""Rows whose tokens are looked at together, so that rows on disk stay there."""


class Positions:
    """The text of rows: special tokens and first positions are left out, as options say.

    What stands before a row's text, its BOS, no target model gives at all.

    Raises:
        ConfigError: nothing is left.
    """

    def __init__(self, target: TargetModel, given: StreamOptions) -> None:
        self.target, self.given = target, given
        self.counts = {split: self._counts(split) for split in SPLITS}
        """by split, used tokens of every row; None where all tokens of all rows are used"""

    def used(self, split: Split, rows: Int[Tensor, " rows"]) -> Bool[Tensor, "rows width"]:
        """Tell of every token of some rows whether it is used; `width` is `tokens_per_row`."""
        width = self.target.tokens_per_row
        used = (torch.arange(width) >= self.given.skip_first).expand(len(rows), width)
        return used if self.given.special_tokens else used & ~self.target.special(split, rows)

    def _counts(self, split: Split) -> UInt[np.ndarray, " rows"] | None:
        if self.given.special_tokens and not self.given.skip_first:
            return None
        count, width = self.target.row_count(split), self.target.tokens_per_row
        # A file of activations may have a hundred million rows, of a token each.
        counts = np.empty(count, np.min_scalar_type(width))
        for start in range(0, count, ROWS_AT_ONCE):
            stop = min(start + ROWS_AT_ONCE, count)
            counts[start:stop] = self.used(split, torch.arange(start, stop)).sum(1).numpy()
        if not counts.any():
            raise ConfigError(
                f"stream.skip_first is {self.given.skip_first}: of {count} {split} rows of {width} "
                "tokens none is left that is no special token."
            )
        return None if (counts == width).all() else counts
