"""Pre-activations of a batch: the one large product of a step, made without a graph.

From it an allocator chooses pairs; at these a value can be differentiated. Its gradient costs as
much as pairs are chosen, not as there are latents. Where many are chosen matrices are faster, and
run instead.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sae_sweeps.engine import device, gemm, sparse
from sae_sweeps.engine.acts import Listed, Selection, SparseActs, at, autocast
from sae_sweeps.engine.rows import distinct_rows
from sae_sweeps.engine.sparse import Pairs

PIECE = 2**22
"""Entries, at most, of what is read at a time on CPUs, so that they are still in a cache."""
TOKENS = 64
"""Tokens at least, however many latents there are: the product is slower with fewer."""


@dataclass(frozen=True)
class Piece:
    """Pre-activations of all latents of some tokens, or of all tokens of some latents."""

    tokens: slice
    latents: slice
    values: Float[Tensor, "tokens latents"]


@dataclass(frozen=True, eq=False)
class PreActs:
    """(x - b_dec) @ W_enc + bias, before rectifier, threshold and allocator."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_dec: Float[Tensor, " d_in"]
    bias: Float[Tensor, " d_sae"]
    x: Float[Tensor, "batch d_in"]
    centred: Float[Tensor, "batch d_in"]
    """x - b_dec, detached"""
    max_listed: float
    """share of token-latent pairs up to which they are listed"""
    version: int
    """of W_enc's values, which may not have changed when something is computed"""

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, d_sae)"""
        return self.x.shape[0], self.W_enc.shape[1]

    @cached_property
    def values(self) -> Float[Tensor, "batch d_sae"]:
        """The matrix, detached; bfloat16 where the product was.

        Raises:
            RuntimeError: it is asked for first when the weights have changed, as `observe` would.
        """
        W, bias = self._weights()
        return gemm.product(self.centred, W, bias[None])

    @property
    def whole(self) -> bool:
        """Whether there is but one piece: on accelerators, or if it is small or needed anyway."""
        batch, d_sae = self.shape
        fits = batch * d_sae <= PIECE or self.max_listed == 0
        return fits or device.looks_whole(self.x.device)

    def pieces(self, by_latent: bool = False) -> Iterator[Piece]:
        """The matrix in pieces, of tokens or latents; a large one is never in memory as a whole.

        Pieces lie latent by latent in memory: so the product is fastest.
        """
        (batch, d_sae), every = self.shape, slice(0, None)
        if self.whole:
            yield Piece(every, every, self.values)
            return
        W, bias = self._weights()
        if by_latent:
            for some in _slices(d_sae, max(1, PIECE // batch)):
                yield Piece(every, some, gemm.product(W[some], self.centred, bias[some, None]).T)
        else:
            for some in _slices(batch, max(TOKENS, PIECE // d_sae)):
                yield Piece(some, every, gemm.product(W, self.centred[some], bias[:, None]).T)

    def _weights(self) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_sae"]]:
        self._check()
        return gemm.rounded(self.W_enc).T, self.bias.detach()

    def _check(self) -> None:
        if self.W_enc._version != self.version:
            raise RuntimeError("pre-activations are asked for after the weights changed")

    def at(self, selection: Selection) -> SparseActs:
        """The values at the selected pairs, differentiable in the weights; elsewhere 0."""
        return self._encoded(selection, self.bias)

    def projections(self, selection: Selection) -> SparseActs:
        """The same without the bias."""
        return self._encoded(selection, None)

    def _encoded(self, selection: Selection, bias: Tensor | None) -> SparseActs:
        flat, (batch, d_sae) = selection.flat, self.shape
        weights = self.W_enc, self.b_dec, bias, self.x
        if flat is not None and len(flat) <= self.max_listed * batch * d_sae:
            pairs = Pairs(self.shape, flat)
            known = self._known(selection, pairs)
            return SparseActs(pairs, _Encode.apply(*weights, self, pairs, known))
        values = self.values.to(self.W_enc.dtype)
        matrix = _Encode.apply(*weights, self, None, values)
        if flat is None:
            return SparseActs(None, matrix)
        mask = torch.zeros(batch * d_sae, dtype=torch.bool, device=flat.device)
        mask = mask.index_fill(0, flat, True).view(batch, d_sae)
        return SparseActs(None, matrix.where(mask, 0.0), mask)

    def _known(self, selection: Selection, pairs: Pairs) -> Float[Tensor, " n"]:
        """The values at the pairs of a selection, in the weights' precision."""
        read = isinstance(selection, Listed)
        return (selection.pre_acts if read else at(self.values, pairs)).to(self.W_enc.dtype)

    def of(self, latents: Int[Tensor, " n"]) -> "PreActs":
        """Those of some latents, each named once, numbered anew."""
        self._check()
        W_enc = distinct_rows(self.W_enc.T, latents).T
        bias = distinct_rows(self.bias, latents)
        return replace(self, W_enc=W_enc, bias=bias, version=W_enc._version)

    def of_tokens(self, tokens: slice) -> "PreActs":
        """Those of some tokens, numbered anew."""
        some = replace(self, x=self.x[tokens], centred=self.centred[tokens])
        if self.whole:
            some.__dict__["values"] = self.values[tokens]  # as cached: it is needed anyway
        return some


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
        values: Tensor,
    ) -> Tensor:
        del b_dec, x  # what they do to the values is in `centred`
        ctx.save_for_backward(W_enc)
        ctx.centred, ctx.pairs, ctx.autocast = pre_acts.centred, pairs, autocast(W_enc)
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
        of_b_dec = torch.addmv(sums.new_empty(len(W_enc)), W_enc, sums, beta=0, alpha=-1)
        return columns.T, of_b_dec, of_bias, of_x, None, None, None


def encode(
    x: Float[Tensor, "batch d_in"],
    W_enc: nn.Parameter,
    b_dec: nn.Parameter,
    bias: Float[Tensor, " d_sae"],
    max_listed: float,
) -> PreActs:
    """(x - b_dec) @ W_enc + bias, of which nothing is computed yet."""
    return PreActs(W_enc, b_dec, bias, x, (x - b_dec).detach(), max_listed, W_enc._version)


def _slices(length: int, most: int) -> Iterator[slice]:
    """Slices of a power of two of places, `most` or fewer, that cover all."""
    size = 1 << (most.bit_length() - 1)
    return (slice(start, min(start + size, length)) for start in range(0, length, size))
