"""The weights that every architecture has: creation, first values, encoding."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.engine.acts import Selection, SparseActs, decode
from sae_sweeps.engine.pre_acts import PreActs, encode
from sae_sweeps.interfaces import Architecture, Step


def create(sae: Architecture, d_in: int, d_sae: int) -> None:
    """Register `W_enc`, `W_dec` and `b_dec` as parameters, values yet to be drawn.

    In memory `W_enc` lies latent by latent, as its sparse gradient does.
    """
    sae.W_enc = nn.Parameter(torch.zeros(d_sae, d_in).T)
    sae.W_dec = nn.Parameter(torch.zeros(d_sae, d_in))
    sae.b_dec = nn.Parameter(torch.zeros(d_in))


@torch.no_grad()
def draw(
    sae: Architecture,
    generator: torch.Generator,
    mean: Float[Tensor, " d_in"],
    encoder_scale: float,
) -> None:
    """Draw unit-norm decoder rows; the encoder starts as their transpose times `encoder_scale`.

    `b_dec` starts at the mean activation. Tied first values are usual since arXiv 2406.04093;
    a scale below 1 keeps the first reconstructions from overshooting where latents overlap.
    """
    sae.W_dec.normal_(generator=generator)
    sae.W_dec.div_(sae.W_dec.norm(dim=1, keepdim=True))
    sae.W_enc.copy_(sae.W_dec.T).mul_(encoder_scale)
    sae.b_dec.copy_(mean)


def project(
    sae: Architecture, x: Float[Tensor, "batch d_in"], bias: Float[Tensor, " d_sae"]
) -> PreActs:
    """(x - b_dec) @ W_enc + bias."""
    return encode(x, sae.W_enc, sae.b_dec, bias, sae.max_listed)


def decoded(
    sae: Architecture,
    x: Float[Tensor, "batch d_in"],
    dead: Bool[Tensor, " d_sae"],
    pre_acts: PreActs,
    selection: Selection,
    selected: SparseActs,
    acts: SparseActs,
) -> Step:
    """The step's record, with recon = acts W_dec + b_dec."""
    recon = decode(acts, sae.W_dec) + sae.b_dec
    budgeted = sae.allocator.sets_budget
    return Step(x, pre_acts, selection, selected, acts, recon, sae.W_dec, dead, budgeted)
