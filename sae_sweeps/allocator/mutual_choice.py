"""Mutual choice (BatchTopK): a batch's k * batch largest (arXiv 2411.02124, 2412.06410)."""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.allocator.thresholds import LearntThreshold, above
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.ranking import largest


def mutual_choice(
    affinities: Float[Tensor, "batch d_sae"], budget: int, guess: Float[Tensor, ""] | None = None
) -> Int[Tensor, " n"]:
    """Flat indices, ascending, of the `budget` largest entries of the whole matrix.

    They are found faster where at least as many lie above `guess`.
    """
    return largest(affinities.flatten(), budget, guess)


GUESS = 0.9
"""Share of the threshold that a batch's smallest kept affinity hardly falls below."""


@final
class MutualChoice(Allocator):
    """sum_bi S_bi <= k * batch in training; at inference affinities above one threshold.

    The threshold averages the smallest affinity kept per batch over `horizon_tokens`.
    """

    sets_budget: ClassVar[bool] = True

    def __init__(self, d_sae: int, *, k: float, horizon_tokens: int) -> None:
        super().__init__()
        self.d_sae, self.k = d_sae, k
        self.threshold = LearntThreshold(1, horizon_tokens)

    def forward(self, affinities: Float[Tensor, "batch d_sae"]) -> Selection:
        threshold = self.threshold.value()[0]
        if not self.training:
            return Selection(above(affinities, threshold))
        budget = round(self.k * affinities.shape[0])
        return Selection(mutual_choice(affinities, budget, GUESS * threshold))

    def observe(self, step: Step, progress: Progress) -> None:
        kept = step.selection.of(step.affinities)
        none = kept.values.new_full((1,), torch.inf)
        smallest = torch.cat([kept.values.where(kept.active, torch.inf), none]).amin()
        self.threshold.update(step, kept, smallest.view(1))

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value().expand(self.d_sae).clone())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
