"""Mutual choice (BatchTopK): a batch's k * batch largest (arXiv 2411.02124, 2412.06410)."""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.allocator.thresholds import LearntThreshold, above, kept_affinities
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step


def mutual_choice(
    affinities: Float[Tensor, "batch d_sae"], budget: int, guess: Float[Tensor, ""] | None = None
) -> Int[Tensor, " n"]:
    """Flat indices, ascending, of the `budget` largest entries of the whole matrix.

    Ranking all entries costs more than the encoder. Where at least `budget` of them lie above
    `guess`, only these are ranked: the choice is the same.
    """
    flat = affinities.flatten()
    candidates = flat[:0].long() if guess is None else (flat > guess).nonzero().squeeze(1)
    if len(candidates) < budget:
        return flat.topk(budget, sorted=False).indices.sort().values
    best = flat[candidates].topk(budget, sorted=False).indices
    return candidates[best].sort().values


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
        kept = kept_affinities(step)
        positive = torch.cat([kept[kept > 0], kept.new_full((1,), torch.inf)])
        self.threshold.update(step, positive.min().view(1))

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value().expand(self.d_sae).clone())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
