"""Activations of a batch: one type, whatever products run inside."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweeps.engine import sparse
from sae_sweeps.engine.sparse import Pairs


@dataclass(frozen=True)
class SparseActs:
    """The activations of a batch: token-latent-value triples ordered by token, dense on demand.

    Without an allocator half of all latents can be active early in training; such a batch is held
    as its matrix, because there a dense product is faster. Who reads it need not know which.
    """

    pairs: Pairs | None
    """token and latent of each triple; None where `values` is the whole matrix"""
    values: Float[Tensor, " n"] | Float[Tensor, "batch d_sae"]
    """entries with value 0 are listed but not active"""
    mask: Bool[Tensor, "batch d_sae"] | None = None
    """of a matrix: which entries are selected, all others being 0; None: all"""

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, d_sae)"""
        if self.pairs is None:
            return self.values.shape[0], self.values.shape[1]
        return self.pairs.shape

    @property
    def tokens(self) -> Int[Tensor, " n"]:
        """Token of each triple."""
        return self._listed.tokens

    @property
    def latents(self) -> Int[Tensor, " n"]:
        """Latent of each triple."""
        return self._listed.latents

    @property
    def _listed(self) -> Pairs:
        if self.pairs is None:
            return Pairs(self.shape, self.values.flatten().nonzero().squeeze(1))
        return self.pairs

    def with_values(self, values: Tensor) -> "SparseActs":
        """The same entries, with other values."""
        selected = values if self.mask is None else values.where(self.mask, 0.0)
        return SparseActs(self.pairs, selected, self.mask)

    def relu(self) -> "SparseActs":
        """The same entries, negative ones set to 0."""
        return self.with_values(self.values.relu())

    def times(self, factors: Float[Tensor, " d_sae"]) -> "SparseActs":
        """The same entries, each latent's times its factor."""
        return self.with_values(self.values * self.spread(factors))

    def spread(self, vector: Float[Tensor, " d_sae"]) -> Tensor:
        """Each latent's number at every of its entries, to be used beside `values`."""
        return vector if self.pairs is None else _Spread.apply(vector, self.pairs)

    def dense(self) -> Float[Tensor, "batch d_sae"]:
        """The activations as a matrix."""
        if self.pairs is None:
            return self.values
        zeros = self.values.new_zeros(self.shape[0] * self.shape[1])
        return zeros.scatter(0, self.pairs.flat, self.values).view(self.shape)

    @cached_property
    def active(self) -> Bool[Tensor, " n"] | Bool[Tensor, "batch d_sae"]:
        """Which entries of `values` are activations: the strictly positive ones."""
        return self.values > 0

    @cached_property
    def tokens_per_latent(self) -> Int[Tensor, " d_sae"]:
        """Tokens on which each latent is active."""
        if self.pairs is None:
            return self.active.sum(0)
        return sparse.per_latent(self.pairs, self.active, self.shape[1])

    def l0_per_token(self) -> Int[Tensor, " batch"]:
        """Active latents of each token."""
        if self.pairs is None:
            return self.active.sum(1)
        active = self.active.long()
        return active.new_zeros(self.shape[0]).index_add(0, self.pairs.tokens, active)

    def l0(self) -> Float[Tensor, ""]:
        """Mean active latents per token."""
        return self.tokens_per_latent.sum() / self.shape[0]


@dataclass(frozen=True)
class Selection:
    """Which token-latent pairs an allocator lets through."""

    flat: Int[Tensor, " n"] | None
    """token * d_sae + latent, ascending; None lets everything through"""

    def of(self, values: Float[Tensor, "batch d_sae"]) -> SparseActs:
        """`values` at the selected pairs, differentiable in `values`."""
        if self.flat is None:
            return SparseActs(None, values)
        pairs = Pairs((values.shape[0], values.shape[1]), self.flat)
        return SparseActs(pairs, at(values, pairs))


@dataclass(frozen=True)
class Listed(Selection):
    """A selection whose pairs were read one by one, with what was read."""

    flat: Int[Tensor, " n"]
    pre_acts: Float[Tensor, " n"]
    """the pre-activations there"""
    affinities: Float[Tensor, " n"]
    """what was ranked"""
    passed: Int[Tensor, ""] | None = None
    """how many of the batch's pairs would be active without a batch, where that is learnt"""

    def keep(self, kept: Bool[Tensor, " n"]) -> "Listed":
        """Some of the pairs."""
        places = kept.nonzero().squeeze(1)
        flat, pre_acts, affinities = (
            part.index_select(0, places) for part in (self.flat, self.pre_acts, self.affinities)
        )
        return Listed(flat, pre_acts, affinities, self.passed)


class _Spread(torch.autograd.Function):
    """vector[latents], whose gradient is a sum for each latent, always in the same order."""

    @staticmethod
    def forward(ctx: Any, vector: Tensor, pairs: Pairs) -> Tensor:
        ctx.pairs, ctx.d_sae = pairs, len(vector)
        return vector.index_select(0, pairs.latents)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return sparse.per_latent(ctx.pairs, grad, ctx.d_sae), None


class _Decode(torch.autograd.Function):
    """values @ W_dec."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pairs: Pairs | None) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pairs, ctx.autocast = pairs, autocast(W_dec)
        return sparse.times(pairs, values, W_dec).to(W_dec.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,), (values, W_dec), (of_values, of_rows, _) = (
            grads,
            ctx.saved_tensors,
            ctx.needs_input_grad,
        )
        with torch.autocast(W_dec.device.type, torch.bfloat16, enabled=ctx.autocast):
            return (
                sparse.products(ctx.pairs, grad, W_dec).to(values.dtype) if of_values else None,
                sparse.transposed_times(ctx.pairs, values, grad).to(W_dec.dtype)
                if of_rows
                else None,
                None,
            )


def decode(acts: SparseActs, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
    """acts @ W_dec, reading only the rows of `W_dec` that are listed."""
    return _Decode.apply(acts.values, W_dec, acts.pairs)


def at(values: Float[Tensor, "batch d_sae"], pairs: Pairs) -> Float[Tensor, " n"]:
    """A matrix's values at some pairs."""
    if values.is_contiguous():
        return values.view(-1).gather(0, pairs.flat)
    return values[pairs.tokens, pairs.latents]


def autocast(weights: Tensor) -> bool:
    """Whether large products run in bfloat16."""
    return torch.is_autocast_enabled(weights.device.type)
