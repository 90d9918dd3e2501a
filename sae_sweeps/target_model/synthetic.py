"""Activations made up from a known dictionary of sparse features: no model, files or network."""

from collections.abc import Mapping
from typing import Annotated, Any, final

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Float, Int, UInt32
from torch import Tensor

from sae_sweeps.engine.acts import SparseActs, decode
from sae_sweeps.engine.sparse import Pairs
from sae_sweeps.engine.zipf import zipf_budgets
from sae_sweeps.interfaces import Data, Splice, SplicedLosses, Split, TargetModel
from sae_sweeps.marks import AtMost
from sae_sweeps.system import interrupt

DICTIONARY, OFFSET, ROWS = range(3)
"""What random numbers are for"""

SPLITS: tuple[Split, Split] = ("train", "held_out")

DRAWS = 2**32
"""Equally likely numbers, one of which decides whether a feature fires"""


@final
class Synthetic(TargetModel):
    """offset + sum of magnitude * direction over a token's active features + noise.

    Sparse sums of more directions than dimensions, as in toy models of superposition
    (arXiv 2209.10652); the distributions are our design. Feature i is active with probability
    min(1, C (i + 1 + shift)^-exponent), where C makes them sum to `l0`; its magnitude is log-normal
    with mean 1. Directions are random and of unit norm. With a `correlation`, a Gaussian variable
    stands behind every feature, and those of `group_size` consecutive features have this
    correlation (a Gaussian copula): they fire together more often, each as often as before.
    `offset` and `noise` are norms (the noise's a root mean square), in units of a mean magnitude.

    Every row is a function of the options, the split and its number, drawn from a generator of its
    own; on the CPU, so that it is the same for every `device`.
    """

    has_loss = False

    def __init__(
        self,
        data: Data,
        device: torch.device,
        *,
        d_in: Annotated[int, Ge(1), Le(2**26)],
        features: Annotated[int, Ge(1), Le(2**26)],
        l0: Annotated[float, Gt(0), AtMost(".features")],
        exponent: Annotated[float, Ge(0)],
        shift: Annotated[float, Ge(0)],
        magnitude_sigma: Annotated[float, Ge(0), Le(10)],
        correlation: Annotated[float, Ge(0), Lt(1)],
        group_size: Annotated[int, Ge(1)],
        offset: Annotated[float, Ge(0)],
        noise: Annotated[float, Ge(0)],
        seed: Annotated[int, Ge(0), Lt(2**63)],
        tokens_per_row: Annotated[int, Ge(1), Le(2**26)],
        train_tokens: Annotated[int, Ge(1)],
        held_out_tokens: Annotated[int, Ge(1)],
    ) -> None:
        self.device, self.d_in, self.true_l0, self.seed = device, d_in, l0, seed
        self.tokens_per_row = tokens_per_row
        self.tokens = {"train": train_tokens, "held_out": held_out_tokens}
        self.magnitude_sigma, self.noise = magnitude_sigma, noise
        self.probabilities = zipf_budgets(features, DRAWS, l0, exponent, shift).exact / DRAWS
        self._limits = _limits(self.probabilities)
        self._group = torch.arange(features) // group_size
        self._own = torch.special.ndtri(self.probabilities) / (1 - correlation) ** 0.5
        self._shared = (correlation / (1 - correlation)) ** 0.5
        self._directions = _unit(_random(seed, DICTIONARY).standard_normal((features, d_in)))
        self.dictionary = self._directions.to(device)
        self.offset = offset * _unit(_random(seed, OFFSET).standard_normal((1, d_in)))[0]
        self.description = {"model_name": None, "hook_name": None}

    @staticmethod
    def width(config: Mapping[str, Any]) -> int:
        return config["target_model"]["d_in"]

    def row_count(self, split: Split) -> int:
        """As many rows as hold the tokens asked for."""
        return -(-self.tokens[split] // self.tokens_per_row)

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        return torch.cat([self._row(split, row) for row in rows.tolist()]).to(self.device)

    def codes(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens features"]:
        """The true features' magnitudes, 0 where inactive, on the tokens of the given rows."""
        parts = [self._codes(self._random(split, row)).dense() for row in rows.tolist()]
        return torch.cat(parts).to(self.device)

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        raise RuntimeError("synthetic activations have no model to run")

    def _random(self, split: Split, row: int) -> np.random.Generator:
        return _random(self.seed, ROWS, SPLITS.index(split), row)

    def _row(self, split: Split, row: int) -> Float[Tensor, "tokens d_in"]:
        interrupt.check()
        random = self._random(split, row)
        acts = self.offset + decode(self._codes(random), self._directions)
        if self.noise:
            noise = random.standard_normal(acts.shape, dtype=np.float32)
            acts += torch.from_numpy(noise) * (self.noise / self.d_in**0.5)
        return acts

    def _codes(self, random: np.random.Generator) -> SparseActs:
        shape = (self.tokens_per_row, len(self.probabilities))
        limits = self._limits_of_tokens(random) if self._shared else self._limits
        active = random.integers(DRAWS, size=shape, dtype=np.uint32) <= limits
        flat = torch.from_numpy(np.flatnonzero(active))
        normal = torch.from_numpy(random.standard_normal(len(flat), dtype=np.float32))
        sigma = self.magnitude_sigma
        return SparseActs(Pairs(shape, flat), (sigma * normal - sigma**2 / 2).exp())

    def _limits_of_tokens(
        self, random: np.random.Generator
    ) -> UInt32[np.ndarray, "tokens features"]:
        """`_limits` for a row's tokens, whose groups' factors are drawn."""
        groups = int(self._group[-1]) + 1
        factors = self._shared * random.standard_normal((self.tokens_per_row, groups))
        return _limits(torch.special.ndtr(self._own - torch.from_numpy(factors)[:, self._group]))


def _limits(probability: Float[Tensor, "*any"]) -> UInt32[np.ndarray, "*any"]:
    """A feature fires where its draw, one of 0 to DRAWS - 1, is at most this."""
    limits = (probability * DRAWS).ceil() - 1
    return limits.clamp(min=0).numpy().astype(np.uint32)


def _random(seed: int, *purpose: int) -> np.random.Generator:
    """Independent random numbers for every seed and purpose."""
    sequence = np.random.SeedSequence(seed, spawn_key=purpose)
    return np.random.Generator(np.random.SFC64(sequence))


def _unit(rows: Float[np.ndarray, "rows d_in"]) -> Float[Tensor, "rows d_in"]:
    """Rows of unit norm, in float32."""
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=1, keepdims=True)).float()
