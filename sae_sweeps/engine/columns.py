"""The largest entries of each latent on an accelerator, whose shapes must be known before."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.engine.host import sent
from sae_sweeps.engine.ranking import classes

FACTOR = 32
"""By how much the budgets of latents that are ranked together may differ."""


class Columns:
    """Latents in groups that are ranked together, whatever the batch.

    Each group is ranked as deep as its largest budget, and what is beyond a latent's own is left
    out. With budgets of 200, 3, 2 and 0 all latents are ranked 3 deep, since most are done then,
    and the first once more, 200 deep.
    """

    def __init__(self, most: Int[Tensor, " d_sae"], batch: int, device: torch.device) -> None:
        """`most` tokens may a latent's budgets be, on the host; `batch` is their highest number."""
        self.batch = batch
        self._groups, self._latents, self._places = grouped(most, batch)
        self._groups = [(deep, sent(some, device)) for deep, some in self._groups]
        self._latents, self._places = sent(self._latents, device), sent(self._places, device)
        self._budgets: Tensor | None = None
        self._chosen = self._owners = self._latents[:0]

    def largest(
        self, values: Float[Tensor, "batch d_sae"], budgets: Int[Tensor, " d_sae"], total: int
    ) -> Int[Tensor, " total"]:
        """token * d_sae + latent of each latent's `budgets[latent]` largest entries, ascending.

        `budgets` are on the host, `total` is their sum.
        """
        if budgets is not self._budgets:  # else the last batch's are as good
            own = sent(budgets, values.device).index_select(0, self._latents)
            self._chosen = torch.nonzero_static(self._places < own, size=total).squeeze(1)
            self._owners = self._latents.index_select(0, self._chosen)
            self._budgets = budgets
        every = values.T.contiguous()
        ranked = [self._latents[:0]]
        for deep, latents in self._groups:
            some = every if len(latents) == len(every) else every.index_select(0, latents)
            ranked.append(some.topk(deep, dim=1).indices.flatten())
        tokens = torch.cat(ranked).index_select(0, self._chosen)
        return torch.add(self._owners, tokens, alpha=values.shape[1]).sort().values


def grouped(
    most: Int[Tensor, " d_sae"], batch: int
) -> tuple[list[tuple[int, Int[Tensor, " some"]]], Int[Tensor, " n"], Int[Tensor, " n"]]:
    """How deep some latents are ranked, group by group; of what that gives, latent and place.

    Latents of the deeper groups have a place in the first that no budget reaches.
    """
    groups = [(int(most[some].max()), some) for _, some in classes(most, batch, FACTOR)]
    if not groups:
        none = torch.zeros(0, dtype=torch.int64)
        return [], none, none
    (least, _), *deeper = groups
    groups = [(least, torch.arange(len(most))), *deeper]
    latents = [some.repeat_interleave(deep) for deep, some in groups]
    places = [torch.arange(deep).repeat(len(some)) for deep, some in groups]
    places[0] = places[0].where(most[latents[0]] <= least, batch)
    return groups, torch.cat(latents), torch.cat(places)
