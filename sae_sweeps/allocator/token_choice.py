"""Token choice (TopK): each token keeps its k largest affinities (arXiv 2406.04093)."""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.ranking import largest_of_rows


def token_choice(affinities: Float[Tensor, "batch d_sae"], k: int) -> Int[Tensor, " n"]:
    """Flat indices, ascending, of each row's k largest entries."""
    batch, d_sae = affinities.shape
    budgets = torch.full((batch,), k, device=affinities.device)
    latents = largest_of_rows(affinities, budgets, k).sort(dim=1).values
    starts = torch.arange(0, batch * d_sae, d_sae, device=affinities.device)
    return (latents + starts[:, None]).flatten()


@final
class TokenChoice(Allocator):
    """sum_i S_bi <= k for every token b; the same with and without a batch."""

    sets_budget: ClassVar[bool] = True

    def __init__(self, d_sae: int, *, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, affinities: Float[Tensor, "batch d_sae"]) -> Selection:
        return Selection(token_choice(affinities, self.k))

    def observe(self, step: Step, progress: Progress) -> None:
        pass

    def inference(self) -> Inference:
        return Inference(k=self.k, threshold=None)

    def rescale(self, factor: float) -> None:
        pass
