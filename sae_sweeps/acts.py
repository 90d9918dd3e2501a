"""Pre-activations and activations of a batch: one type each, whatever products run inside.

The large product of a step is made once, without a graph. From it an allocator chooses pairs; at
these a value can be differentiated. Its gradient costs as much as pairs are chosen, not as there
are latents. Where many are chosen matrices are faster, and run instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_sweeps import gemm, sparse
from sae_sweeps.sparse import Pairs

MAX_LISTED = 1 / 8
"""Share of all pairs up to which listing them pays on a CPU; measured at d_in 128 to 768."""
LISTED_FROM = 12288
"""Latents from which listing pays on an accelerator; an estimate, not measured."""


def max_listed(engine: str, device: torch.device, d_sae: int) -> float:
    """Share of token-latent pairs up to which products are made pair by pair."""
    if engine != "auto":
        return 1.0 if engine == "sparse" else 0.0
    return MAX_LISTED if device.type == "cpu" or d_sae >= LISTED_FROM else 0.0


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
        return vector if self.pairs is None else vector.index_select(0, self.pairs.latents)

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
        return sparse.per_latent(self.pairs, self.active.long(), self.shape[1])

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


@dataclass(frozen=True, eq=False)
class PreActs:
    """(x - b_dec) @ W_enc + bias, before rectifier, threshold and allocator."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_dec: Float[Tensor, " d_in"]
    bias: Float[Tensor, " d_sae"]
    x: Float[Tensor, "batch d_in"]
    centred: Float[Tensor, "batch d_in"]
    """x - b_dec, detached"""
    values: Float[Tensor, "batch d_sae"]
    """the matrix, detached; bfloat16 where the product was"""
    max_listed: float
    """share of pairs up to which they are listed"""

    def listed(
        self, selection: Selection, active: Callable[[], Bool[Tensor, "batch d_sae"]]
    ) -> Selection:
        """`selection`, for values that are 0, with gradient 0, wherever `active` is false.

        Where everything is selected and little is active, the active pairs are listed.
        """
        if selection.flat is not None:
            return selection
        mask = active()
        if mask.count_nonzero() > self.max_listed * mask.numel():
            return selection
        return Selection(mask.flatten().nonzero().squeeze(1))

    def at(self, selection: Selection) -> SparseActs:
        """The values at the selected pairs, differentiable in the weights; elsewhere 0."""
        return self._encoded(selection, self.bias)

    def projections(self, selection: Selection) -> SparseActs:
        """The same without the bias."""
        return self._encoded(selection, None)

    def _encoded(self, selection: Selection, bias: Tensor | None) -> SparseActs:
        flat, (batch, d_sae) = selection.flat, self.values.shape
        if flat is not None and len(flat) <= self.max_listed * batch * d_sae:
            pairs = Pairs((batch, d_sae), flat)
            return SparseActs(
                pairs, _Encode.apply(self.W_enc, self.b_dec, bias, self.x, self, pairs)
            )
        matrix = _Encode.apply(self.W_enc, self.b_dec, bias, self.x, self, None)
        if flat is None:
            return SparseActs(None, matrix)
        mask = torch.zeros(batch * d_sae, dtype=torch.bool, device=flat.device)
        mask = mask.index_fill(0, flat, True).view(batch, d_sae)
        return SparseActs(None, matrix.where(mask, 0.0), mask)

    def known(self, pairs: Pairs | None) -> Tensor:
        """The values at `pairs`, or all, in the weights' precision."""
        if pairs is None:
            return self.values.to(self.W_enc.dtype)
        if self.values.dtype != self.W_enc.dtype:
            exact = sparse.products(pairs, self.centred, self.W_enc.detach().T)
            return exact + self.bias.detach()[pairs.latents]
        return at(self.values, pairs)

    def of(self, latents: Int[Tensor, " n"]) -> "PreActs":
        """Those of some latents, numbered anew."""
        W_enc = self.W_enc.T.index_select(0, latents).T
        values = self.values.index_select(1, latents)
        return replace(self, W_enc=W_enc, bias=self.bias[latents], values=values)


class _Encode(torch.autograd.Function):
    """Values that are known already, with their gradient in the encoder's weights."""

    @staticmethod
    def forward(
        ctx: Any,
        W_enc: Tensor,
        b_dec: Tensor,
        bias: Tensor | None,
        x: Tensor,
        pre_acts: PreActs,
        pairs: Pairs | None,
    ) -> Tensor:
        del b_dec, x  # what they do to the values is in `centred`
        ctx.save_for_backward(W_enc)
        ctx.centred, ctx.pairs, ctx.autocast = pre_acts.centred, pairs, autocast(W_enc)
        values = pre_acts.known(pairs)
        if bias is not None:
            return values.view_as(values)
        subtracted = pre_acts.bias.detach()
        return values - (subtracted if pairs is None else subtracted[pairs.latents])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (W_enc,) = grads, ctx.saved_tensors
        with torch.autocast(W_enc.device.type, torch.bfloat16, enabled=ctx.autocast):
            columns = sparse.transposed_times(ctx.pairs, grad, ctx.centred).to(W_enc.dtype)
        sums = sparse.per_latent(ctx.pairs, grad, W_enc.shape[1])
        of_bias = sums if ctx.needs_input_grad[2] else None
        of_x = sparse.times(ctx.pairs, grad, W_enc.T) if ctx.needs_input_grad[3] else None
        return columns.T, -(W_enc @ sums), of_bias, of_x, None, None


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


def encode(
    x: Float[Tensor, "batch d_in"],
    W_enc: nn.Parameter,
    b_dec: nn.Parameter,
    bias: Float[Tensor, " d_sae"],
    max_listed: float,
    by_latent: bool,
) -> PreActs:
    """(x - b_dec) @ W_enc + bias; its matrix laid out latent by latent if so wished."""
    with torch.no_grad():
        centred = x - b_dec
        values = gemm.product(centred, W_enc.T, bias, by_latent)
    return PreActs(W_enc, b_dec, bias, x, centred, values, max_listed)


def at(values: Float[Tensor, "batch d_sae"], pairs: Pairs) -> Float[Tensor, " n"]:
    """A matrix's values at some pairs."""
    if values.is_contiguous():
        return values.view(-1).gather(0, pairs.flat)
    return values[pairs.tokens, pairs.latents]


def autocast(weights: Tensor) -> bool:
    """Whether large products run in bfloat16."""
    return torch.is_autocast_enabled(weights.device.type)
