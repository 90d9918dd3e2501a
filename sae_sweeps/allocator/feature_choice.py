"""Feature choice: each latent keeps its own number of tokens of a batch (arXiv 2411.02124).

The paper's abstract names the idea and a Zipf prior; the exact budgets, the switch from mutual
choice and the batch-free thresholds are our design.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, final

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.allocator.mutual_choice import mutual_choice
from sae_sweeps.allocator.thresholds import LearntThreshold
from sae_sweeps.engine.acts import Listed
from sae_sweeps.engine.affinities import Affinities, merged
from sae_sweeps.engine.averages import TokenAverage
from sae_sweeps.engine.ranking import classes, within_budgets
from sae_sweeps.engine.zipf import zipf_budgets
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.marks import AtMost


def feature_choice(
    affinities: Affinities,
    budgets: Int[Tensor, " d_sae"],
    threshold: LearntThreshold | None = None,
) -> Selection:
    """Each column's `budgets[latent]` largest entries; on CPUs of equal ones the first.

    They are found faster where the `threshold` tells what many of them exceed. Budgets are on the
    CPU: on accelerators all shapes are known there, and nothing waits.
    """
    if not affinities.listed:
        return _by_topk(affinities, budgets, threshold)
    batch, d_sae = affinities.shape
    learnt = torch.full((d_sae,), torch.inf) if threshold is None else threshold.value()
    likely = affinities.reaching(learnt[:, None], by_latent=True, budgets=budgets)
    latents = likely.flat % d_sae
    short = torch.bincount(latents, minlength=d_sae) < budgets
    # Those of latents that are short of them are looked for again, with their budget to start from.
    kept = within_budgets(latents, likely.affinities, budgets.where(~short, 0))
    found = [likely.keep(kept)]
    for most, some in classes(budgets.where(short, 0), batch):
        own = affinities.of(some).largest(budgets[some], most, by_latent=True)
        tokens = torch.div(own.flat, len(some), rounding_mode="floor")
        found.append(replace(own, flat=tokens * d_sae + some[own.flat % len(some)]))
    passed = threshold.passing(likely, d_sae) if threshold else None
    return replace(merged(found), passed=passed)


def _by_topk(
    affinities: Affinities, budgets: Int[Tensor, " d_sae"], threshold: LearntThreshold | None
) -> Listed:
    """Likewise, with the shapes of all operations known on the CPU."""
    (batch, d_sae), columns = affinities.shape, affinities.values.T.contiguous()
    device = columns.device
    chosen = [torch.zeros(0, dtype=torch.int64, device=device)]
    for most, latents in classes(budgets, batch):
        wanted, here = budgets[latents], latents.to(device)
        tokens = columns.index_select(0, here).topk(most, dim=1).indices
        within = (torch.arange(most) < wanted[:, None]).flatten().nonzero().squeeze(1)
        chosen.append((tokens * d_sae + here[:, None]).flatten()[within.to(device)])
    passed = (affinities.values > threshold.value()).count_nonzero() if threshold else None
    return replace(affinities.at(torch.cat(chosen).sort().values), passed=passed)


@final
class FeatureChoice(Allocator):
    """sum_b S_bi <= m_i for every latent i, with sum_i m_i = k * batch.

    Up to `mutual_tokens` the batch is allocated by mutual choice; then latents are ranked by their
    firing density and keep these ranks, and so their budgets, for good. From scratch
    (`mutual_tokens` 0) ranks follow the latents' order. At inference latent i is active above its
    own threshold, the average of the smallest affinity that it kept per batch.

    "stochastic" draws which budgets are rounded up, anew for each batch and so that each is right
    on average: a latent whose budget is below 1 still gets its share.
    """

    sets_budget: ClassVar[bool] = True

    def __init__(
        self,
        d_sae: int,
        *,
        k: Annotated[float, Gt(0), AtMost("d_sae")],
        exponent: Annotated[float, Ge(0)],
        shift: Annotated[float, Ge(0)],
        mutual_tokens: Annotated[int, Ge(0), AtMost("training.tokens")],
        horizon_tokens: Annotated[int, Ge(1)],
        rounding: Literal["largest_remainder", "stochastic"],
        seed: Annotated[int, Ge(0), Lt(2**63)],
    ) -> None:
        super().__init__()
        self.d_sae, self.k, self.exponent, self.shift = d_sae, k, exponent, shift
        self.mutual_tokens, self.rounding, self.seed = mutual_tokens, rounding, seed
        # No buffer: 0 after each training step, and evaluation counts from there, reloaded or not.
        self.unobserved = 0
        self.threshold = LearntThreshold(d_sae, horizon_tokens)
        self.density = TokenAverage(d_sae, horizon_tokens, missing=0.0)
        # No buffers either: they stay on the CPU, where budgets are made.
        self.latent_of_rank, self.tokens_seen = torch.arange(d_sae), 0

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.allocator.slots import budget_fills_a_slot, zipf_fills_a_slot

        yield from budget_fills_a_slot(config)
        yield from zipf_fills_a_slot(config)

    def get_extra_state(self) -> Tensor:
        return torch.cat([torch.tensor([self.tokens_seen]), self.latent_of_rank])

    def set_extra_state(self, state: Tensor) -> None:
        self.tokens_seen, self.latent_of_rank = int(state[0]), state[1:].clone()

    def _is_mutual(self) -> bool:
        return self.tokens_seen < self.mutual_tokens

    def forward(self, affinities: Affinities) -> Selection:
        batch = affinities.shape[0]
        if not self.training:
            return affinities.above(self.threshold.value().clamp(min=0))
        if self._is_mutual():
            return mutual_choice(affinities, round(self.k * batch), self.threshold)
        selection = feature_choice(affinities, self.budgets(batch), self.threshold)
        self.unobserved += 1
        return selection

    def budgets(self, batch: int) -> Int[Tensor, " d_sae"]:
        """Tokens that each latent may keep of the next batch, by latent; on the CPU."""
        budgets = zipf_budgets(self.d_sae, batch, self.k, self.exponent, self.shift)
        stochastic = self.rounding == "stochastic"
        by_rank = budgets.systematic(self._uniform()) if stochastic else budgets.largest_remainder
        return torch.zeros_like(by_rank).scatter(0, self.latent_of_rank, by_rank)

    def _uniform(self) -> float:
        """A number in [0, 1) that the seed, the tokens seen and the batches since determine."""
        entropy = [self.seed, self.tokens_seen, self.unobserved]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) / 2**32

    def observe(self, step: Step, progress: Progress) -> None:
        batch = step.x.shape[0]
        fired = step.acts.tokens_per_latent
        self.density.update(fired / batch, torch.ones_like(fired, dtype=torch.bool), batch)
        assert isinstance(step.selection, Listed)
        self.threshold.update(step.selection, self._smallest(step.selection), batch)
        if self.tokens_seen < self.mutual_tokens <= progress.tokens:
            self._switch()
        self.tokens_seen = progress.tokens
        self.unobserved = 0

    def _smallest(self, kept: Listed) -> Float[Tensor, " d_sae"]:
        positive = kept.affinities.where(kept.affinities > 0, torch.inf)
        smallest = positive.new_full((self.d_sae,), torch.inf)
        return smallest.scatter_reduce(0, kept.flat % self.d_sae, positive, "amin")

    def _switch(self) -> None:
        """Freeze the ranks; thresholds begin anew, since mutual choice kept other entries."""
        order = self.density.value().argsort(descending=True, stable=True)
        self.latent_of_rank = order.cpu()
        self.threshold.restart()

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
