"""aux_k: dead latents reconstruct what living ones left over (arXiv 2406.04093, A.2)."""

from typing import Annotated, final

from annotated_types import Ge
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweeps.aux_loss.residual import concerned_in, residual_loss
from sae_sweeps.engine.concerned import Concerned
from sae_sweeps.interfaces import AuxLoss, Step
from sae_sweeps.marks import AtMost


@final
class AuxK(AuxLoss):
    """coef * ||e - e_hat||^2 / ||e - mean(e)||^2, e_hat from dead latents, without b_dec.

    e is the detached residual. Per token the `k_aux` dead latents of largest pre-activation are
    decoded (null: d_in / 2), rectified where an allocator sets the budget, else as they are.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        coef: Annotated[float, Ge(0)],
        k_aux: Annotated[int | None, Ge(1), AtMost("d_sae")],
    ) -> None:
        super().__init__()
        self.coef = coef
        self.k_aux = d_in // 2 if k_aux is None else k_aux

    def forward(self, step: Step) -> Float[Tensor, ""]:
        return residual_loss(step, concerned_in(step, self), self.k_aux, self.coef)

    def concerned(self, dead: Bool[Tensor, " d_sae"], budgeted: bool) -> Concerned:
        return Concerned(dead)
