"""The order in which streams come to token rows and tokens; options alone define it."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.config.options import StreamOptions
from sae_sweeps.interfaces import Split, TargetModel
from sae_sweeps.stream.positions import Positions

HELD_OUT_SEED = 0
"""Held-out tokens are the same whatever `stream.seed`, so that sweeps can be compared."""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of an order."""

    rows: Int[Tensor, " rows"]
    """the rows that hold them"""
    places: Int[Tensor, " tokens"]
    """where they are among all tokens of those rows, laid end to end"""

    @property
    def passed_over(self) -> int:
        """Tokens that lie among these and are not used."""
        return int(self.places[-1]) - int(self.places[0]) + 1 - len(self.places)

    def of(self, acts: Float[Tensor, "more d_in"]) -> Float[Tensor, "tokens d_in"]:
        """Of the activations of the rows, those of the tokens; a view where that will do."""
        if not self.passed_over:
            return acts[int(self.places[0]) : int(self.places[-1]) + 1]
        return acts[self.places.to(acts.device)]


class Order:
    """The used tokens of a target model's permuted rows, laid end to end; rows repeat endlessly."""

    def __init__(self, target: TargetModel, given: StreamOptions) -> None:
        self.target, self.seed = target, given.seed
        self.positions = Positions(target, given)
        self._kept: dict[tuple[Split, int], np.ndarray] = {}

    def size(self, split: Split) -> int:
        """Used tokens of a split, before rows repeat."""
        counts = self.positions.counts[split]
        if counts is None:
            return self.target.row_count(split) * self.target.tokens_per_row
        return int(counts.sum())

    def besides(self, split: Split) -> str:
        """Say how many tokens of a split are left out for where they stand; nothing for none."""
        all_ = self.target.row_count(split) * self.target.tokens_per_row
        left_out = all_ - self.size(split)
        return f", {left_out} special tokens and first positions aside" if left_out else ""

    def span(self, split: Split, start: int, stop: int) -> Span:
        """The tokens [start, stop)."""
        first, last = self.row_of(split, start), self.row_of(split, stop - 1) + 1
        rows = self.rows(split, first, last)
        before = start - self._start(split, first)
        if self.positions.counts[split] is None:
            return Span(rows, torch.arange(before, before + stop - start))
        used = self.positions.used(split, rows).flatten().nonzero().squeeze(1)
        return Span(rows, used[before : before + stop - start])

    def row_of(self, split: Split, token: int) -> int:
        """The number of the row that holds a token, where rows go on being counted as they repeat.

        Where rows hold 3, 0 and 2 used tokens, token 3 is in row 2, token 5 (the first) in row 3.
        """
        if self.positions.counts[split] is None:
            return token // self.target.tokens_per_row
        epoch, rest = divmod(token, self.size(split))
        row = int(np.searchsorted(self._starts(split, epoch), rest, side="right")) - 1
        return epoch * self.target.row_count(split) + row

    def _start(self, split: Split, row: int) -> int:
        """The first token of a row, numbered as `row_of` does."""
        if self.positions.counts[split] is None:
            return row * self.target.tokens_per_row
        epoch, rest = divmod(row, self.target.row_count(split))
        return epoch * self.size(split) + int(self._starts(split, epoch)[rest])

    def _starts(self, split: Split, epoch: int) -> Int[np.ndarray, " rows"]:
        """The first token of each row of an epoch, counted from the epoch's first."""
        kept = self._kept.get((split, epoch))
        if kept is not None:
            return kept
        counts = self.positions.counts[split]
        assert counts is not None
        permuted = counts[self._epoch(split, epoch).numpy()]
        starts = permuted.cumsum(dtype=np.int64) - permuted
        self._kept = {key: own for key, own in self._kept.items() if key[0] != split}
        self._kept[split, epoch] = starts
        return starts

    def rows(self, split: Split, first: int, last: int) -> Int[Tensor, " rows"]:
        """Rows [first, last) of the sequence of row permutations, one an epoch."""
        count = self.target.row_count(split)
        parts: list[Tensor] = []
        for epoch in range(first // count, (last - 1) // count + 1):
            start, stop = first - epoch * count, last - epoch * count
            parts.append(self._epoch(split, epoch)[max(start, 0) : stop])
        return torch.cat(parts)

    def _epoch(self, split: Split, epoch: int) -> Int[Tensor, " rows"]:
        seed = self.seed if split == "train" else HELD_OUT_SEED
        return permutation(self.target.row_count(split), seed, 0, epoch)


@lru_cache(maxsize=8)
def permutation(size: int, seed: int, purpose: int, index: int) -> Int[Tensor, " size"]:
    """A permutation that its four numbers define."""
    state = np.random.SeedSequence([seed, purpose, index]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
    return torch.randperm(size, generator=generator)
