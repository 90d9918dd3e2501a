"""Mutual choice (BatchTopK): a batch's k * batch largest (arXiv 2411.02124, 2412.06410)."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.allocator.thresholds import LearntThreshold
from sae_sweeps.engine.acts import Listed
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.ranking import largest
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.marks import AtMost

GUESS = 0.95
"""Share of the threshold that a batch's smallest kept affinity hardly falls below."""
SPARE, SPARE_PAIRS = (1.2, 2.0), 16
"""How many times the pairs wanted, and how many more, a bound from a sample should let through."""


def mutual_choice(
    affinities: Affinities, budget: int, threshold: LearntThreshold | None = None
) -> Selection:
    """The `budget` largest entries of the whole matrix; on CPUs of equal ones the first.

    They are found faster where the `threshold` tells what they exceed.
    """
    if affinities.listed:
        for bound in _bounds(affinities, budget, threshold):
            found = affinities.reaching(bound)
            if len(found.flat) >= budget:
                passed = threshold.passing(found, affinities.shape[1]) if threshold else None
                return replace(found.keep(largest(found.affinities, budget)), passed=passed)
    every = affinities.values.flatten()
    if affinities.listed:  # the bounds were misled; or entries are no numbers
        flat = largest(every, budget).nonzero().squeeze(1)
    else:
        flat = every.topk(budget, sorted=False).indices.sort().values
    passed = (affinities.values > threshold.value()).count_nonzero() if threshold else None
    return replace(affinities.at(flat), passed=passed)


def _bounds(
    affinities: Affinities, budget: int, threshold: LearntThreshold | None
) -> Iterator[Float[Tensor, "1 1"]]:
    """What the smallest entry kept is hardly below, first by the threshold, then by a sample."""
    guess = torch.full((1, 1), torch.inf)
    if threshold is not None:
        guess = (GUESS * threshold.value().amin()).view(1, 1)
        if guess.isfinite():
            yield guess
    sample, (batch, d_sae) = affinities.sample().values.flatten(), affinities.shape
    for spare in SPARE:
        count = int(spare * budget * len(sample) / (batch * d_sae)) + SPARE_PAIRS
        found = sample.topk(min(count, len(sample)), sorted=False).values
        yield torch.minimum(guess, found.amin())


@final
class MutualChoice(Allocator):
    """sum_bi S_bi <= k * batch in training; at inference affinities above one threshold.

    The threshold averages the smallest affinity kept per batch over `horizon_tokens`.
    """

    sets_budget: ClassVar[bool] = True

    def __init__(
        self,
        d_sae: int,
        *,
        k: Annotated[float, Gt(0), AtMost("d_sae")],
        horizon_tokens: Annotated[int, Ge(1)],
    ) -> None:
        super().__init__()
        self.d_sae, self.k = d_sae, k
        self.threshold = LearntThreshold(1, horizon_tokens)

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.allocator.slots import budget_fills_a_slot

        yield from budget_fills_a_slot(config)

    def forward(self, affinities: Affinities) -> Selection:
        if not self.training:
            return affinities.above(self.threshold.value().clamp(min=0))
        return mutual_choice(affinities, round(self.k * affinities.shape[0]), self.threshold)

    def observe(self, step: Step, progress: Progress) -> None:
        assert isinstance(step.selection, Listed)
        kept = step.selection.affinities
        positive = kept.masked_fill(kept <= 0, torch.inf)
        smallest = positive.amin(0, keepdim=True) if len(kept) else kept.new_full((1,), torch.inf)
        self.threshold.update(step.selection, smallest, len(step.x))

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value().expand(self.d_sae).clone())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
