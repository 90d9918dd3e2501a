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
    than twice its need.
    """
    batch, d_sae = affinities.shape
    columns = affinities.T.contiguous()
    chosen = [budgets[:0]]
    least = 1
    while least <= batch:
        most = min(2 * least - 1, batch)
        latents = ((budgets >= least) & (budgets <= most)).nonzero().squeeze(1)
        if len(latents):
            tokens = largest_of_rows(columns.index_select(0, latents), budgets[latents], most)
            within = torch.arange(most, device=budgets.device) < budgets[latents, None]
            chosen.append((tokens * d_sae + latents[:, None])[within])
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
    latent_of_rank: Tensor
    tokens_seen: Tensor

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
        self.register_buffer("latent_of_rank", torch.arange(d_sae))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))

    def by_latent(self) -> bool:
        return self.training and not self._is_mutual()

    def _is_mutual(self) -> bool:
        return bool(self.tokens_seen < self.mutual_tokens)

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
        """Tokens that each latent may keep of the next batch, by latent."""
        budgets = zipf_budgets(self.d_sae, batch, self.k, self.exponent, self.shift)
        stochastic = self.rounding == "stochastic"
        by_rank = budgets.systematic(self._uniform()) if stochastic else budgets.largest_remainder
        ranked = by_rank.to(self.latent_of_rank.device)
        return torch.zeros_like(ranked).scatter(0, self.latent_of_rank, ranked)

    def _uniform(self) -> float:
        """A number in [0, 1) that the seed, the tokens seen and the batches since determine."""
        entropy = [self.seed, int(self.tokens_seen), self.unobserved]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0]) / 2**32

    def observe(self, step: Step, progress: Progress) -> None:
        batch = step.x.shape[0]
        fired = step.acts.tokens_per_latent
        self.density.update(fired / batch, torch.ones_like(fired, dtype=torch.bool), batch)
        kept = step.selection.of(step.affinities)
        self.threshold.update(step, kept, self._smallest(kept))
        if self.tokens_seen < self.mutual_tokens <= progress.tokens:
            self._switch()
        self.tokens_seen.fill_(progress.tokens)
        self.unobserved = 0

    def _smallest(self, kept: SparseActs) -> Float[Tensor, " d_sae"]:
        positive = kept.values.where(kept.active, torch.inf)
        smallest = positive.new_full((self.d_sae,), torch.inf)
        return smallest.scatter_reduce(0, kept.latents, positive, "amin")

    def _switch(self) -> None:
        """Freeze the ranks; thresholds begin anew, since mutual choice kept other entries."""
        order = self.density.value().argsort(descending=True, stable=True)
        self.latent_of_rank.copy_(order)
        self.threshold.restart()

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
