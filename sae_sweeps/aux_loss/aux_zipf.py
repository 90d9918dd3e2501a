"""aux_zipf: underused latents, dead ones first, reconstruct what the SAE left over.

The idea is in the abstract of arXiv 2411.02124, without a formula: this one is our design. It
generalises aux_k from dead latents to latents that fire much less than Zipf's law expects.
"""

from typing import Annotated, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweeps.aux_loss.residual import concerned_in, residual_loss
from sae_sweeps.engine.averages import TokenAverage
from sae_sweeps.engine.concerned import Concerned
from sae_sweeps.engine.zipf import zipf_densities
from sae_sweeps.interfaces import AuxLoss, Progress, Step
from sae_sweeps.marks import AtMost


def underuse(
    density: Float[Tensor, " d_sae"],
    l0: Float[Tensor, ""],
    dead: Bool[Tensor, " d_sae"],
    tau: float,
    exponent: float,
    shift: float,
) -> Float[Tensor, " d_sae"]:
    """clip(1 - u / tau, 0, 1), and 1 where `dead`: how much each latent lacks, 0 to 1.

    u is its firing density over the one that Zipf's law gives its rank among densities that sum to
    `l0`. Of equal densities the lower index has the lower rank.
    """
    order = density.argsort(descending=True, stable=True)
    expected = zipf_densities(len(density), l0, exponent, shift).to(density.dtype)
    expected = torch.zeros_like(density).scatter(0, order, expected)
    used = density / expected.clamp(min=torch.finfo(density.dtype).tiny)
    return (1 - used / tau).clamp(0, 1).where(~dead, 1.0)


@final
class AuxZipf(AuxLoss):
    """coef * ||e - e_hat||^2 / ||e - mean(e)||^2, e_hat from underused latents, without b_dec.

    e is the detached residual. Per token the `k_aux` largest of w_i * pre-activation are decoded
    with these values (null: d_in / 2), w the underuse; rectified where an allocator sets the
    budget, else as they are. Densities are averages over `horizon_tokens`, and w is that of dead
    latents alone before the first. They should sum to `target_l0` where an allocator sets the
    budget; elsewhere to what they sum to. As tau goes to 0 only latents stay that are dead or have
    never fired: then it is aux_k.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        coef: Annotated[float, Ge(0)],
        k_aux: Annotated[int | None, Ge(1), AtMost("d_sae")],
        tau: Annotated[float, Gt(0)],
        exponent: Annotated[float, Ge(0)],
        shift: Annotated[float, Ge(0)],
        target_l0: Annotated[float, Gt(0), AtMost("d_sae")],
        horizon_tokens: Annotated[int, Ge(1)],
    ) -> None:
        super().__init__()
        self.coef, self.tau, self.exponent, self.shift = coef, tau, exponent, shift
        self.k_aux = d_in // 2 if k_aux is None else k_aux
        self.target_l0 = target_l0
        self.density = TokenAverage(d_sae, horizon_tokens, missing=0.0)

    def forward(self, step: Step) -> Float[Tensor, ""]:
        return residual_loss(step, concerned_in(step, self), self.k_aux, self.coef)

    def concerned(self, dead: Bool[Tensor, " d_sae"], budgeted: bool) -> Concerned:
        density, known = self.density.value(), self.density.weight > 0
        l0 = density.new_full((), self.target_l0) if budgeted else density.sum()
        lack = underuse(density, l0, dead, self.tau, self.exponent, self.shift)
        return Concerned((known | dead) & (lack > 0), lack)

    def observe(self, step: Step, progress: Progress) -> None:
        batch, fired = len(step.x), step.acts.tokens_per_latent
        self.density.update(fired / batch, None, batch)
