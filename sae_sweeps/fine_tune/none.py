"""No last phase."""

from typing import ClassVar, final

from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.interfaces import Architecture, Divergence, FineTune, Step


@final
class NoFineTune(FineTune):
    """A phase of 0 tokens."""

    whole_contexts: ClassVar[bool] = False
    tokens = 0
    lr = 0.0

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()

    def begin(self, sae: Architecture) -> list[nn.Parameter]:
        return []

    def forward(
        self,
        sae: Architecture,
        x: Float[Tensor, "batch d_in"],
        dead: Bool[Tensor, " d_sae"],
        divergence: Divergence | None,
    ) -> tuple[Step, Float[Tensor, ""]]:
        raise RuntimeError("there is no last phase")
