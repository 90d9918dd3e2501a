"""Token choice (TopK): each token keeps its k largest affinities (arXiv 2406.04093)."""

from typing import Annotated, ClassVar, final

from annotated_types import Gt

from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.marks import AtMost


@final
class TokenChoice(Allocator):
    """sum_i S_bi <= k for every token b; the same with and without a batch."""

    sets_budget: ClassVar[bool] = True

    def __init__(self, d_sae: int, *, k: Annotated[int, Gt(0), AtMost("d_sae")]) -> None:
        super().__init__()
        self.k = k

    def forward(self, affinities: Affinities) -> Selection:
        return affinities.largest_of_tokens(self.k)

    def observe(self, step: Step, progress: Progress) -> None:
        pass

    def inference(self) -> Inference:
        return Inference(k=self.k, threshold=None)

    def rescale(self, factor: float) -> None:
        pass
