"""No resampling."""

from typing import final

from jaxtyping import Int
from torch import Tensor

from sae_sweeps.interfaces import Architecture, Progress, Resampling, Step


@final
class NoResampling(Resampling):
    """Every latent keeps its weights."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()

    def forward(
        self, sae: Architecture, step: Step, progress: Progress
    ) -> Int[Tensor, " n"] | None:
        return None

    def lr_factor(self, tokens: int) -> float:
        return 1.0
