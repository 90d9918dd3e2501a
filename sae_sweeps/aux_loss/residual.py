"""What aux_k and aux_zipf share: latents in need reconstruct what the SAE left over."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.engine.acts import SparseActs, decode
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.concerned import Concerned
from sae_sweeps.engine.pre_acts import PreActs
from sae_sweeps.engine.rows import distinct_rows
from sae_sweeps.interfaces import AuxLoss, Step


def concerned_in(step: Step, aux_loss: AuxLoss) -> Concerned:
    """The latents that a loss concerns, asked for now if nobody asked before the step."""
    found = step.concerned
    if found is None:
        found = aux_loss.concerned(step.dead, step.budgeted)
    assert found is not None
    return found


def residual_loss(step: Step, concerned: Concerned, k_aux: int, coef: float) -> Float[Tensor, ""]:
    """coef * ||e - e_hat||^2 / ||e - mean(e)||^2, e the detached residual, e_hat without b_dec.

    Per token e_hat decodes weight * pre-activation of the `k_aux` latents in which this is largest,
    of those that are concerned. Values are rectified where an allocator chose among all
    latents, as in arXiv 2406.04093. Without one a dead latent is negative on every token:
    rectified, its gradient would be exactly 0, so it enters as it is.

    0, gradients too, where no latent is concerned or the residual has no variance, as of one token.
    """
    if len(concerned) == 0:
        return step.x.new_zeros(())
    latents = concerned.latents
    chosen = _chosen(step.pre_acts.of(latents), concerned, latents, k_aux)
    chosen = chosen.relu() if step.budgeted else chosen
    residual = (step.x - step.recon).detach()
    error = (residual - decode(chosen, distinct_rows(step.W_dec, latents))).pow(2).sum()
    variance = (residual - residual.mean(0)).pow(2).sum()
    return coef * torch.where(variance > 0, error / variance.where(variance > 0, 1.0), 0.0)


def _chosen(
    pre_acts: PreActs, concerned: Concerned, latents: Int[Tensor, " n"], k_aux: int
) -> SparseActs:
    """weight * pre-activation, where it is largest."""
    most = min(k_aux, len(latents))
    if concerned.weight is None:
        return pre_acts.at(Affinities(pre_acts).largest_of_tokens(most))
    own = concerned.weight.to(pre_acts.x.dtype).index_select(0, latents)
    affinities = Affinities(pre_acts, lambda values, some: values * own[some])
    return pre_acts.at(affinities.largest_of_tokens(most)).times(own)
