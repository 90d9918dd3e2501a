"""What aux_k and aux_zipf share: latents in need reconstruct what the SAE left over."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.acts import Selection, decode
from sae_sweeps.interfaces import Step
from sae_sweeps.ranking import topk


def residual_loss(step: Step, weight: Float[Tensor, " d_sae"], k_aux: int) -> Float[Tensor, ""]:
    """||e - e_hat||^2 / ||e - mean(e)||^2, e the detached residual, e_hat without b_dec.

    Per token e_hat decodes weight * pre-activation of the `k_aux` latents in which this is largest,
    of those whose weight is positive. Values are rectified where an allocator chose among all
    latents, as in arXiv 2406.04093. Without one a dead latent is negative on every token:
    rectified, its gradient would be exactly 0, so it enters as it is.

    0, gradients too, where no weight is positive or the residual has no variance, as of one token.
    """
    latents = weight.nonzero().squeeze(1)
    if len(latents) == 0:
        return step.x.new_zeros(())
    # All within the latents concerned, which are few and whose pre-activations are known.
    pre_acts = step.pre_acts.of(latents)
    own = weight[latents]
    wanted = pre_acts.values * own
    batch, count = wanted.shape
    top = topk(wanted, min(k_aux, count))[1].sort(dim=1).values
    starts = torch.arange(0, batch * count, count, device=top.device)
    chosen = pre_acts.at(Selection((top + starts[:, None]).flatten())).times(own)
    chosen = chosen.relu() if step.budgeted else chosen
    residual = (step.x - step.recon).detach()
    error = (residual - decode(chosen, step.W_dec.index_select(0, latents))).pow(2).sum()
    variance = (residual - residual.mean(0)).pow(2).sum()
    defined = variance > 0
    return torch.where(defined, error / variance.where(defined, 1.0), 0.0)
