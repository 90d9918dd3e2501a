"""The order in which streams come to token rows and tokens; options alone define it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.interfaces import Split, TargetModel

HELD_OUT_SEED = 0
"""Held-out tokens are the same whatever `stream.seed`, so that sweeps can be compared."""


@dataclass(frozen=True)
class Order:
    """The permuted token rows of a target model, laid end to end; rows repeat without end."""

    target: TargetModel
    seed: int

    def size(self, split: Split) -> int:
        """Tokens of a split, before rows repeat."""
        return self.target.row_count(split) * self.target.tokens_per_row

    def rows_with(self, split: Split, start: int, stop: int) -> Int[Tensor, " rows"]:
        """The rows that hold the tokens [start, stop)."""
        width = self.target.tokens_per_row
        return self.rows(split, start // width, -(-stop // width))

    def cut(
        self, acts: Float[Tensor, "more d_in"], start: int, stop: int
    ) -> Float[Tensor, "tokens d_in"]:
        """Of the activations of `rows_with`, those of the tokens themselves."""
        before = start % self.target.tokens_per_row
        return acts[before : before + stop - start]

    def rows(self, split: Split, first: int, last: int) -> Int[Tensor, " rows"]:
        """Rows [first, last) of the sequence of row permutations, one an epoch."""
        count = self.target.row_count(split)
        seed = self.seed if split == "train" else HELD_OUT_SEED
        parts: list[Tensor] = []
        for epoch in range(first // count, (last - 1) // count + 1):
            start, stop = first - epoch * count, last - epoch * count
            parts.append(permutation(count, seed, 0, epoch)[max(start, 0) : stop])
        return torch.cat(parts)


@lru_cache(maxsize=8)
def permutation(size: int, seed: int, purpose: int, index: int) -> Int[Tensor, " size"]:
    """A permutation that its four numbers define."""
    state = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    return torch.randperm(size, generator=generator)
