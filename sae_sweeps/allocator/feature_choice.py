"""Feature choice: each latent keeps its own number of tokens of a batch (arXiv 2411.02124).

The paper's abstract names the idea and a Zipf prior; the exact budgets, the switch from mutual
choice and the batch-free thresholds are our design.
"""

from functools import lru_cache
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.allocator.mutual_choice import GUESS, mutual_choice
from sae_sweeps.allocator.thresholds import (
    LearntThreshold,
    TokenAverage,
    above,
    kept_affinities,
)
from sae_sweeps.interfaces import Allocator, Inference, Progress, Selection, Step


@lru_cache(maxsize=64)
def zipf_budgets(d_sae: int, batch: int, k: float, exponent: float, shift: float) -> list[int]:
    """Tokens each rank may keep of a batch: min(batch, C * (rank + shift)^-exponent).

    C is found by water-filling: what the cap at `batch` cuts off goes to the others in proportion,
    until all budgets sum to k * batch. Largest remainders round them; equal ones favour the lower
    rank. Exponent 0 is the uniform budget, shift 0 plain Zipf.
    """
    total = round(k * batch)
    share = (torch.arange(1, d_sae + 1, dtype=torch.float64) + shift) ** -exponent
    capped = 0
    while True:
        budget = share * ((total - capped * batch) / share[capped:].sum())
        budget[:capped] = batch
        over = int((budget > batch).sum())
        if over == 0:
            break
        capped += over
    whole = budget.floor()
    short = total - int(whole.sum())
    order = (budget - whole).argsort(descending=True, stable=True)
    whole[order[:short]] += 1
    return [int(tokens) for tokens in whole]


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
            tokens = columns[latents].topk(most, dim=1).indices
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
    ) -> None:
        super().__init__()
        self.d_sae, self.k, self.exponent, self.shift = d_sae, k, exponent, shift
        self.mutual_tokens = mutual_tokens
        self.threshold = LearntThreshold(d_sae, horizon_tokens)
        self.density = TokenAverage(d_sae, horizon_tokens, missing=0.0)
        self.register_buffer("latent_of_rank", torch.arange(d_sae))
        self.register_buffer("tokens_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, affinities: Float[Tensor, "batch d_sae"]) -> Selection:
        batch = affinities.shape[0]
        if not self.training:
            return Selection(above(affinities, self.threshold.value()))
        if self.tokens_seen < self.mutual_tokens:
            guess = GUESS * self.threshold.value().min()
            return Selection(mutual_choice(affinities, round(self.k * batch), guess))
        return Selection(feature_choice(affinities, self.budgets(batch)))

    def budgets(self, batch: int) -> Int[Tensor, " d_sae"]:
        """Tokens that each latent may keep of a batch, by latent."""
        by_rank = zipf_budgets(self.d_sae, batch, self.k, self.exponent, self.shift)
        ranked = torch.tensor(by_rank, device=self.latent_of_rank.device)
        return torch.zeros_like(ranked).scatter(0, self.latent_of_rank, ranked)

    def observe(self, step: Step, progress: Progress) -> None:
        batch = step.x.shape[0]
        fired = step.acts.tokens_per_latent
        self.density.update(fired / batch, torch.ones_like(fired, dtype=torch.bool), batch)
        self.threshold.update(step, self._smallest_kept(step))
        if self.tokens_seen < self.mutual_tokens <= progress.tokens:
            self._switch()
        self.tokens_seen.fill_(progress.tokens)

    def _smallest_kept(self, step: Step) -> Float[Tensor, " d_sae"]:
        kept = kept_affinities(step)
        kept = kept.where(kept > 0, torch.inf)
        smallest = kept.new_full((self.d_sae,), torch.inf)
        return smallest.scatter_reduce(0, step.acts.latents, kept, "amin")

    def _switch(self) -> None:
        """Freeze the ranks; thresholds begin anew, since mutual choice kept other entries."""
        order = self.density.value().argsort(descending=True, stable=True)
        self.latent_of_rank.copy_(order)
        self.threshold.restart()

    def inference(self) -> Inference:
        return Inference(k=None, threshold=self.threshold.value())

    def rescale(self, factor: float) -> None:
        self.threshold.rescale(factor)
