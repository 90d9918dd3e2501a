"""No auxiliary loss."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from sae_sweeps.interfaces import AuxLoss, Step


@final
class NoAux(AuxLoss):
    """0."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()

    def forward(self, step: Step) -> Float[Tensor, ""]:
        return step.x.new_zeros(())
