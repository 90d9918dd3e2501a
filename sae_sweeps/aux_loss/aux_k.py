"""aux_k: dead latents reconstruct what living ones left over (arXiv 2406.04093, A.2)."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.interfaces import AuxLoss, Step


@final
class AuxK(AuxLoss):
    """coef * ||e - e_hat||^2 / ||e - mean(e)||^2, e_hat from dead latents, without b_dec.

    e is the detached residual.

    Per token the `k_aux` dead latents of largest pre-activation are decoded (null: d_in / 2).
    Values are rectified where an allocator chose among all latents, as in the paper. Without one a
    dead latent is negative on every token: rectified, its gradient would be exactly 0, so it enters
    as it is.
    """

    def __init__(self, d_in: int, d_sae: int, *, coef: float, k_aux: int | None) -> None:
        super().__init__()
        self.coef = coef
        self.k_aux = d_in // 2 if k_aux is None else k_aux

    def forward(self, step: Step) -> Float[Tensor, ""]:
        dead = step.dead.nonzero().squeeze(1)
        if len(dead) == 0:
            return step.x.new_zeros(())
        pre_acts = step.pre_acts[:, dead]
        top = pre_acts.topk(min(self.k_aux, len(dead)), dim=1, sorted=False)
        values = top.values.relu() if step.budgeted else top.values
        chosen = torch.zeros_like(pre_acts).scatter(1, top.indices, values)
        residual = (step.x - step.recon).detach()
        error = (residual - chosen @ step.W_dec[dead]).pow(2).sum()
        variance = (residual - residual.mean(0)).pow(2).sum()
        # A residual without variance, as of one token, has no scale: then 0, gradients too.
        defined = variance > 0
        return self.coef * torch.where(defined, error / variance.where(defined, 1.0), 0.0)
