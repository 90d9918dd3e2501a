"""Feature choice: each latent keeps its own number of tokens of a batch (arXiv 2411.02124).

The paper's abstract names the idea and a Zipf prior; the exact budgets, the switch from mutual
choice and the batch-free thresholds are our design.
"""

from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.acts import SparseActs
from sae_sweeps.allocator.mutual_choice import GUESS, mutual_choice
from sae_sweeps.allocator.thresholds import LearntThreshold, above
from sae_sweeps.averages import TokenAverage
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step
from sae_sweeps.ranking import largest_of_rows
from sae_sweeps.zipf import zipf_budgets


def feature_choice(
    affinities: Float[Tensor, "batch d_sae"], budgets: Int[Tensor, " d_sae"]
) -> Int[Tensor, " n"]:
    """Flat indices, ascending, of each column's `budgets[latent]` largest entries.

    Latents are ranked in groups of like budget (powers of two), so that no column is sorted further
    than twice its need. Budgets are on the CPU: all shapes are known there, and nothing waits.
    """
    batch, d_sae = affinities.shape
    columns = affinities.T.contiguous()
    device = affinities.device
    chosen = [torch.zeros(0, dtype=torch.int64, device=device)]
    least = 1
    while least <= batch:
        most = min(2 * least - 1, batch)
        latents = ((budgets >= least) & (budgets <= most)).nonzero().squeeze(1)
        if len(latents):
            wanted, here = budgets[latents], latents.to(device)
            tokens = largest_of_rows(columns.index_select(0, here), wanted, most)
            within = (torch.arange(most) < wanted[:, None]).flatten().nonzero().squeeze(1)
            chosen.append((tokens * d_sae + here[:, None]).flatten()[within.to(device)])
        least *= 2
    return torch.cat(chosen).sort().values


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
        k: float,
        exponent: float,
        shift: float,
        mutual_tokens: int,
        horizon_tokens: int,
        rounding: Literal["largest_remainder", "stochastic"],
        seed: int,
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

    def get_extra_state(self) -> Tensor:
        return torch.cat([torch.tensor([self.tokens_seen]), self.latent_of_rank])

    def set_extra_state(self, state: Tensor) -> None:
        self.tokens_seen, self.latent_of_rank = int(state[0]), state[1:].clone()

    def by_latent(self) -> bool:
        return self.training and not self._is_mutual()

    def _is_mutual(self) -> bool:
        return self.tokens_seen < self.mutual_tokens

    def forward(self, affinities: Float[Tensor, "batch d_sae"]) -> Selection:
        batch = affinities.shape[0]
        if not self.training:
            return Selection(above(affinities, self.threshold.value()))
        if self._is_mutual():
            guess = GUESS * self.threshold.value().min()
            return Selection(mutual_choice(affinities, round(self.k * batch), guess))
        selection = Selection(feature_choice(affinities, self.budgets(batch)))
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
        kept = step.selection.of(step.affinities)
        self.threshold.update(step, kept, self._smallest(kept))
        if self.tokens_seen < self.mutual_tokens <= progress.tokens:
            self._switch()
        self.tokens_seen = progress.tokens
        self.unobserved = 0

    def _smallest(self, kept: SparseActs) -> Float[Tensor, " d_sae"]:
        positive = kept.values.where(kept.active, torch.inf)
        smallest = positive.new_full((self.d_sae,), torch.inf)
        return smallest.scatter_reduce(0, kept.latents, positive, "amin")

    def _switch(self) -> None:
        """Freeze the ranks; thresholds begin anew, since mutual choice kept other entries."""
        order = self.density.value().argsort(descending=True, stable=True)
        self.latent_of_rank = order.cpu()
        self.threshold.restart()

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
