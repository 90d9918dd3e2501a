"""Products with sparse matrices, given as token-latent pairs with a value each.

Each of the three has its dense counterpart beside it, for matrices that are held as such: these
are the reference, and what runs where many pairs are listed.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn import functional as F

from sae_sweeps.engine import device
from sae_sweeps.engine.gemm import matmul, rounded

with warnings.catch_warnings():
    # PyTorch says it once, here: in a step the filter of one thread would be undone by another.
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    torch.zeros(0, 0).to_sparse_csr()
# PyTorch before 2.13 warns that it does not check, unless that is said for all matrices at once.
torch.sparse.check_sparse_tensor_invariants.disable()


@dataclass(frozen=True)
class Pairs:
    """Token-latent pairs of a batch, ordered by token."""

    shape: tuple[int, int]
    """(batch, d_sae)"""
    flat: Int[Tensor, " n"]
    """token * d_sae + latent of each pair, ascending"""

    @cached_property
    def tokens(self) -> Int[Tensor, " n"]:
        """Token of each pair."""
        return torch.div(self.flat, self.shape[1], rounding_mode="floor")

    @cached_property
    def latents(self) -> Int[Tensor, " n"]:
        """Latent of each pair."""
        return self.flat % self.shape[1]

    @cached_property
    def token_starts(self) -> Int[Tensor, " borders"]:
        """Where each token's pairs begin, and where the last one's end."""
        batch, d_sae = self.shape
        borders = torch.arange(0, (batch + 1) * d_sae, d_sae, device=self.flat.device)
        return torch.searchsorted(self.flat, borders)

    @cached_property
    def by_latent(self) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, " borders"]]:
        """The pairs' numbers ordered by latent, then token; their tokens; where latents begin."""
        ordered = self.latents.to(torch.int32).sort(stable=True)
        borders = torch.arange(self.shape[1] + 1, dtype=torch.int32, device=self.flat.device)
        # Not by bincount, which makes an accelerator wait.
        starts = torch.searchsorted(ordered.values, borders)
        return ordered.indices, self.tokens.index_select(0, ordered.indices), starts


def times(
    pairs: Pairs | None, values: Tensor, rows: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "batch d_in"]:
    """values @ rows."""
    if pairs is None:
        return matmul(values, rounded(rows))
    return _sums(pairs.latents, values, pairs.token_starts, rows)


def transposed_times(
    pairs: Pairs | None, values: Tensor, rows: Float[Tensor, "batch d_in"]
) -> Float[Tensor, "d_sae d_in"]:
    """values.T @ rows.

    Sorted by latent, the pairs are those of another sparse matrix: each output row is a sum of
    input rows, with no atomic additions and so always in the same order.
    """
    if pairs is None:
        return matmul(values.T, rows)
    order, tokens, starts = pairs.by_latent
    return _sums(tokens, values.index_select(0, order), starts, rows)


def products(
    pairs: Pairs | None, left: Float[Tensor, "batch d_in"], right: Float[Tensor, "d_sae d_in"]
) -> Tensor:
    """left @ right.T: of each pair, or the matrix."""
    if pairs is None:
        return matmul(left, rounded(right).T)
    zeros = torch.sparse_csr_tensor(
        pairs.token_starts,
        pairs.latents,
        left.new_zeros(len(pairs.flat)),
        size=pairs.shape,
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(zeros, left, right.T, beta=0.0).values()


def per_latent(pairs: Pairs | None, values: Tensor, d_sae: int) -> Num[Tensor, " d_sae"]:
    """Sum of each latent's values; of truths, how many are true."""
    if pairs is None:
        return values.sum(0)
    values = values.long() if values.dtype == torch.bool else values
    if values.is_floating_point() and device.has_fused_kernels(values.device):
        # CUDA's index_add adds floats in the order in which they happen to come.
        order, _, starts = pairs.by_latent
        sorted_values = values.index_select(0, order)
        return torch.segment_reduce(sorted_values, "sum", offsets=starts, unsafe=True)
    return values.new_zeros(d_sae).index_add(0, pairs.latents, values)


def _sums(
    indices: Int[Tensor, " n"], weights: Float[Tensor, " n"], starts: Tensor, rows: Tensor
) -> Tensor:
    """Weighted sums of `rows[indices]` between each start and the next."""
    return F.embedding_bag(
        indices, rows, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
