"""No allocator: all positive activations are active; sparsity comes from a penalty."""

from typing import ClassVar, final

from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step


@final
class NoAllocator(Allocator):
    """S = 1."""

    sets_budget: ClassVar[bool] = False
    ranks: ClassVar[bool] = False

    def __init__(self, d_sae: int) -> None:
        super().__init__()

    def forward(self, affinities: Affinities) -> Selection:
        return Selection(None)

    def observe(self, step: Step, progress: Progress) -> None:
        pass

    def inference(self) -> Inference:
        return Inference(k=None, threshold=None)

    def rescale(self, factor: float) -> None:
        pass
