"""Mutual choice (BatchTopK): a batch's k * batch largest (arXiv 2411.02124, 2412.06410)."""

from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.allocator.average import ThresholdLevel, TokenAverage
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


def above(affinities: Float[Tensor, "batch d_sae"], threshold: Tensor) -> Int[Tensor, " n"]:
    """Flat indices, ascending, of entries above 0 and a threshold, one or one per latent."""
    return (affinities > threshold.clamp(min=0)).flatten().nonzero().squeeze(1)


def smallest_kept(step: Step) -> Float[Tensor, "1"]:
    """The smallest positive affinity that was selected; +inf where there was none."""
    kept = step.affinities.flatten()[step.acts.flat]
    return torch.where(kept > 0, kept, torch.inf).min().view(1)


@final
class MutualChoice(Allocator):
    """sum_bi S_bi <= k * batch in training; at inference affinities above one threshold.

    The threshold averages the smallest affinity kept per batch over `horizon_tokens`.
    """

    sets_budget: ClassVar[bool] = True

    def __init__(self, d_sae: int, *, k: float, horizon_tokens: int) -> None:
        super().__init__()
        self.d_sae, self.k = d_sae, k
        self.smallest = TokenAverage(1, horizon_tokens, missing=torch.inf)
        self.level = ThresholdLevel(horizon_tokens)

    def forward(self, affinities: Float[Tensor, "batch d_sae"]) -> Selection:
        if self.training:
            budget = round(self.k * affinities.shape[0])
            return Selection(mutual_choice(affinities, budget, GUESS * self.threshold()))
        return Selection(above(affinities, self.threshold()))

    def threshold(self) -> Float[Tensor, ""]:
        """The affinity above which a pair is active at inference."""
        return self.smallest.value()[0] * self.level.value()

    def observe(self, step: Step, progress: Progress) -> None:
        smallest = smallest_kept(step)
        passed = (step.affinities > self.threshold()).sum()
        self.level.update(passed, step.acts.active.sum(), step.x.shape[0])
        self.smallest.update(smallest, smallest.isfinite(), step.x.shape[0])

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold().expand(self.d_sae).clone())

    def rescale(self, factor: float) -> None:
        self.smallest.total *= factor
