"""What aux_k and aux_zipf share: latents in need reconstruct what the SAE left over."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.engine.acts import decode
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.interfaces import Step


def residual_loss(step: Step, weight: Float[Tensor, " d_sae"], k_aux: int) -> Float[Tensor, ""]:
    """||e - e_hat||^2 / ||e - mean(e)||^2, e the detached residual, e_hat without b_dec.

    Per token e_hat decodes weight * pre-activation of the `k_aux` latents in which this is largest,
    of those whose weight is positive. Values are rectified where an allocator chose among all
    latents, as in arXiv 2406.04093. Without one a dead latent is negative on every token:
    rectified, its gradient would be exactly 0, so it enters as it is.

    0, gradients too, where no weight is positive or the residual has no variance, as of one token.
    """
    pre_acts, own, W_dec = step.pre_acts, weight, step.W_dec
    if Affinities(pre_acts).listed:
        # All within the latents concerned, which are few; how many, accelerators are not asked.
        latents = weight.nonzero().squeeze(1)
        if len(latents) == 0:
            return step.x.new_zeros(())
        pre_acts, own = pre_acts.of(latents), weight[latents]
        W_dec = W_dec.index_select(0, latents)
    affinities = Affinities(
        pre_acts, lambda values, some: (values * own[some]).where(own[some] > 0, -torch.inf)
    )
    chosen = pre_acts.at(affinities.largest_of_tokens(min(k_aux, len(own)))).times(own)
    chosen = chosen.relu() if step.budgeted else chosen
    residual = (step.x - step.recon).detach()
    error = (residual - decode(chosen, W_dec)).pow(2).sum()
    variance = (residual - residual.mean(0)).pow(2).sum()
    defined = (variance > 0) & (weight > 0).any()
    return torch.where(defined, error / variance.where(defined, 1.0), 0.0)
