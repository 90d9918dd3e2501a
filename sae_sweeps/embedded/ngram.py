"""Interpolated Kneser-Ney n-grams (Ney et al. 1994; Chen and Goodman 1999, section 2.7)."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Float64, Int64, Integer

FALLBACK_DISCOUNT = 0.75
"""For corpora too small to hold both a count of one and a count of two."""


def pack_grams(grams: Integer[np.ndarray, "n order"], vocab: int) -> Int64[np.ndarray, " n"]:
    """Return one sortable key per row; its last word is the key modulo `vocab`."""
    keys = np.zeros(len(grams), dtype=np.int64)
    for words in grams.T:
        keys = keys * vocab + words.astype(np.int64)
    return keys


def look_up(
    table: Int64[np.ndarray, " m"], values: Int64[np.ndarray, " m"], keys: Int64[np.ndarray, " n"]
) -> Int64[np.ndarray, " n"]:
    """Return the value of each key in the sorted `table`, 0 for keys that it lacks."""
    position = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return np.where(table[position] == keys, values[position], 0)


def estimate_discount(counts: Int64[np.ndarray, " m"]) -> float:
    """Return n1 / (n1 + 2 n2), the leaving-one-out estimate from the counts of counts."""
    n1, n2 = int((counts == 1).sum()), int((counts == 2).sum())
    return n1 / (n1 + 2 * n2) if n1 and n2 else FALLBACK_DISCOUNT


@final
@dataclass(frozen=True)
class Level:
    """One order: p(w|c) = (max(n(cw) - D, 0) + D types(c) p_lower(w)) / n(c), sorted by key."""

    grams: Int64[np.ndarray, " m"]
    counts: Int64[np.ndarray, " m"]
    contexts: Int64[np.ndarray, " c"]
    totals: Int64[np.ndarray, " c"]
    types: Int64[np.ndarray, " c"]
    discount: float

    def refine(
        self,
        lower: Float64[np.ndarray, " n"],
        keys: Int64[np.ndarray, " n"],
        vocab: int,
    ) -> Float64[np.ndarray, " n"]:
        """Return the probabilities of this order from those of the order below."""
        contexts = keys // vocab
        total = look_up(self.contexts, self.totals, contexts)
        types = look_up(self.contexts, self.types, contexts)
        kept = np.maximum(look_up(self.grams, self.counts, keys) - self.discount, 0)
        refined = (kept + self.discount * types * lower) / np.maximum(total, 1)
        return np.where(total > 0, refined, lower)


def count_level(occurrences: Int64[np.ndarray, " n"], vocab: int) -> Level:
    """Return the level whose counts are the multiplicities of the keys in `occurrences`."""
    grams, counts = np.unique(occurrences, return_counts=True)
    contexts, start, types = np.unique(grams // vocab, return_index=True, return_counts=True)
    totals = np.add.reduceat(counts, start)
    return Level(grams, counts, contexts, totals, types, estimate_discount(counts))


@final
@dataclass(frozen=True)
class KneserNey:
    """An n-gram model whose lower orders count distinct left neighbours, not occurrences."""

    vocab: int
    levels: tuple[Level, ...]
    """Orders 1 to n."""

    @classmethod
    def fit(cls, ids: Integer[np.ndarray, " tokens"], vocab: int, order: int) -> "KneserNey":
        """Count the stream `ids`, which needs at least `order` tokens."""
        assert vocab**order < 2**63, "keys must fit 64 bits"
        windows = np.lib.stride_tricks.sliding_window_view
        top = pack_grams(windows(ids, order), vocab)
        levels = [count_level(top, vocab)]
        for n in range(order, 1, -1):
            distinct = np.unique(pack_grams(windows(ids, n), vocab))
            levels.append(count_level(distinct % vocab ** (n - 1), vocab))
        return cls(vocab, tuple(reversed(levels)))

    def probabilities(self, grams: Integer[np.ndarray, "n order"]) -> Float64[np.ndarray, " n"]:
        """Return the probability of each row's last word after the words before it."""
        keys = pack_grams(grams, self.vocab)
        result = np.full(len(grams), 1 / self.vocab)
        for n, level in enumerate(self.levels, start=1):
            result = level.refine(result, keys % self.vocab**n, self.vocab)
        return result

    def cross_entropy_nats(
        self, ids: Integer[np.ndarray, " tokens"], bos: int
    ) -> Float64[np.ndarray, " tokens"]:
        """Return -log p of every token of a stream, whose start is padded with `bos`."""
        order = len(self.levels)
        padded = np.concatenate([np.full(order - 1, bos, dtype=ids.dtype), ids])
        return -np.log(self.probabilities(np.lib.stride_tricks.sliding_window_view(padded, order)))
