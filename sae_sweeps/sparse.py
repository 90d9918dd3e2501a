"""Products with sparse activations, as pure functions."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_sweeps.interfaces import SparseActs


def decode(acts: SparseActs, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
    """acts @ W_dec, reading only the rows of `W_dec` that are listed."""
    if acts.flat is None:
        return acts.values @ W_dec
    return F.embedding_bag(
        acts.latents,
        W_dec,
        _starts(acts.tokens, acts.shape[0]),
        mode="sum",
        per_sample_weights=acts.values,
    )


def _starts(tokens: Int[Tensor, " n"], batch: int) -> Int[Tensor, " batch"]:
    """Where each token's triples begin."""
    return torch.searchsorted(tokens, torch.arange(batch, device=tokens.device))
