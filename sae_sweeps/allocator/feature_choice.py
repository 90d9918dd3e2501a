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
from sae_sweeps.engine.columns import Columns
from sae_sweeps.engine.ranking import classes, within_budgets
from sae_sweeps.engine.zipf import Budgets, zipf_budgets
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.marks import AtMost


def feature_choice(
    affinities: Affinities,
    budgets: Int[Tensor, " d_sae"],
    threshold: LearntThreshold | None = None,
) -> Selection:
    """Each column's `budgets[latent]` largest entries; on CPUs of equal ones the first.

    They are found faster where the `threshold` tells what many of them exceed.
    """
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
        self.tokens_seen = 0
        self._rank(torch.arange(d_sae))

    def _rank(self, latent_of_rank: Int[Tensor, " d_sae"]) -> None:
        self.latent_of_rank = self._budgets = latent_of_rank
        # What was made of others.
        self._by_rank: Tensor | None = None
        self._columns: Columns | None = None

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.allocator.slots import budget_fills_a_slot, zipf_fills_a_slot

        yield from budget_fills_a_slot(config)
        yield from zipf_fills_a_slot(config)

    def get_extra_state(self) -> Tensor:
        return torch.cat([torch.tensor([self.tokens_seen]), self.latent_of_rank])

    def set_extra_state(self, state: Tensor) -> None:
        self.tokens_seen = int(state[0])
        self._rank(state[1:].clone())

    def _is_mutual(self) -> bool:
        return self.tokens_seen < self.mutual_tokens

    def forward(self, affinities: Affinities) -> Selection:
        batch = affinities.shape[0]
        if not self.training:
            return affinities.above(self.threshold.value().clamp(min=0))
        if self._is_mutual():
            return mutual_choice(affinities, round(self.k * batch), self.threshold)
        if affinities.listed:
            selection = feature_choice(affinities, self.budgets(batch), self.threshold)
        else:
            selection = self._by_columns(affinities)
        self.unobserved += 1
        return selection

    def _by_columns(self, affinities: Affinities) -> Selection:
        """Likewise on an accelerator, where nobody waits."""
        values, batch = affinities.values, affinities.shape[0]
        if self._columns is None or self._columns.batch != batch:
            self._columns = Columns(self._most(batch), batch, values.device)
        flat = self._columns.largest(values, self.budgets(batch), round(self.k * batch))
        passed = (values > self.threshold.value()).count_nonzero()
        return replace(affinities.at(flat), passed=passed)

    def _most(self, batch: int) -> Int[Tensor, " d_sae"]:
        """The largest budget that each latent may have, however it is rounded."""
        return self._by_latent(self._exact(batch).exact.ceil().long())

    def budgets(self, batch: int) -> Int[Tensor, " d_sae"]:
        """Tokens that each latent may keep of the next batch, by latent; on the CPU."""
        budgets, stochastic = self._exact(batch), self.rounding == "stochastic"
        by_rank = budgets.systematic(self._uniform()) if stochastic else budgets.largest_remainder
        if by_rank is not self._by_rank:
            self._by_rank, self._budgets = by_rank, self._by_latent(by_rank)
        return self._budgets

    def _exact(self, batch: int) -> Budgets:
        return zipf_budgets(self.d_sae, batch, self.k, self.exponent, self.shift)

    def _by_latent(self, by_rank: Int[Tensor, " d_sae"]) -> Int[Tensor, " d_sae"]:
        return torch.zeros_like(by_rank).scatter(0, self.latent_of_rank, by_rank)

    def _uniform(self) -> float:
        """A number in [0, 1) that the seed, the tokens seen and the batches since determine."""
        entropy = [self.seed, self.tokens_seen, self.unobserved]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) / 2**32

    def observe(self, step: Step, progress: Progress) -> None:
        batch = step.x.shape[0]
        fired = step.acts.tokens_per_latent
        if self.tokens_seen < self.mutual_tokens:  # later ranks stay as they are
            self.density.update(fired / batch, None, batch)
        assert isinstance(step.selection, Listed)
        self.threshold.update(step.selection, self._smallest(step), batch)
        if self.tokens_seen < self.mutual_tokens <= progress.tokens:
            self._switch()
        self.tokens_seen = progress.tokens
        self.unobserved = 0

    def _smallest(self, step: Step) -> Float[Tensor, " d_sae"]:
        kept, pairs = step.selection, step.acts.pairs
        assert isinstance(kept, Listed)
        latents = kept.flat % self.d_sae if pairs is None else pairs.latents
        positive = kept.affinities.masked_fill(kept.affinities <= 0, torch.inf)
        smallest = positive.new_full((self.d_sae,), torch.inf)
        return smallest.scatter_reduce(0, latents, positive, "amin")

    def _switch(self) -> None:
        """Freeze the ranks; thresholds begin anew, since mutual choice kept other entries."""
        order = self.density.value().argsort(descending=True, stable=True)
        self._rank(order.cpu())
        self.threshold.restart()

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
