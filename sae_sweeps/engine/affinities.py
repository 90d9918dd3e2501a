"""What an allocator ranks: to be looked at whole, or for the pairs that reach a bound."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.engine import device, ranking
from sae_sweeps.engine.acts import Listed, Selection, at
from sae_sweeps.engine.pre_acts import Piece, PreActs
from sae_sweeps.engine.sparse import Pairs

SAMPLED = 64
"""Tokens that tell about how many pairs a bound lets through."""

Bounds = Callable[[slice, Float[Tensor, "rows groups"]], Float[Tensor, "_ 1"]]
"""Of some tokens or latents, and the maxima of groups in their rows: the bound of each, or one."""


def as_they_are(values: Tensor, latents: slice | Tensor) -> Tensor:
    """The affinities of most architectures: pre-activations."""
    del latents
    return values


@dataclass(frozen=True, eq=False)
class Affinities:
    """A matrix of token-latent affinities, detached: what is made of pre-activations."""

    pre_acts: PreActs
    made_of: Callable[[Tensor, slice | Tensor], Tensor] = as_they_are
    """of pre-activations of all or some latents, and which these are"""

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, d_sae)"""
        return self.pre_acts.shape

    @property
    def listed(self) -> bool:
        """Whether to list what reaches a bound is fast; on accelerators it would be waited for."""
        return not device.looks_whole(self.pre_acts.x.device)

    @cached_property
    def values(self) -> Float[Tensor, "batch d_sae"]:
        """The whole matrix."""
        return self.made_of(self.pre_acts.values, slice(None))

    def reaching(
        self,
        bounds: Float[Tensor, "_ 1"],
        by_latent: bool = False,
        budgets: Int[Tensor, " rows"] | None = None,
    ) -> Listed:
        """The pairs whose affinity is at least a bound: one for all, or one per latent.

        Bounds that fewer reach than a latent's budget are lowered, where that can be told.
        """

        def of(rows: slice, maxima: Tensor) -> Tensor:
            own = bounds[rows] if by_latent else bounds
            return own if budgets is None else ranking.lowered(own, maxima, budgets[rows])

        return self._found(of, 1, by_latent)

    def above(self, threshold: Float[Tensor, " thresholds"]) -> Listed:
        """The pairs whose affinity is strictly above a threshold, one for all or one per latent."""
        bounds = torch.nextafter(threshold, torch.full_like(threshold, torch.inf))
        return self.reaching(bounds[:, None], by_latent=len(bounds) > 1)

    def largest(self, budgets: Int[Tensor, " rows"], most: int, by_latent: bool = False) -> Listed:
        """Of each token, or latent, its `budgets[row]` largest pairs; of equal ones the first.

        No budget is above `most`, which is not much more than they are.
        """

        def of(rows: slice, maxima: Tensor) -> Tensor:
            return ranking.lower_bounds(maxima, budgets[rows], most)

        found, d_sae = self._found(of, most, by_latent), self.shape[1]
        tokens = torch.div(found.flat, d_sae, rounding_mode="floor")
        rows = found.flat % d_sae if by_latent else tokens
        return found.keep(ranking.within_budgets(rows, found.affinities, budgets))

    def largest_of_tokens(self, k: int) -> Selection:
        """Of each token its k largest pairs; on CPUs of equal ones the first."""
        batch, d_sae = self.shape
        if self.listed:
            return self.largest(torch.full((batch,), k), k)
        latents = self.values.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        starts = torch.arange(0, batch * d_sae, d_sae, device=latents.device)
        return Selection((latents + starts[:, None]).flatten())

    def _found(self, bounds: Bounds, count: int, by_latent: bool) -> Listed:
        """The pairs that reach their row's bound; the matrix is read once, in pieces."""
        pieces = self.pre_acts.pieces(by_latent)
        return merged([self._in_piece(piece, bounds, count, by_latent) for piece in pieces])

    def at(self, flat: Int[Tensor, " n"]) -> Listed:
        """The pairs of these numbers, ascending, read from the whole matrix."""
        pairs = Pairs(self.shape, flat)
        pre_acts = affinities = at(self.pre_acts.values, pairs)
        if self.values is not self.pre_acts.values:
            affinities = at(self.values, pairs)
        return Listed(flat, pre_acts, affinities)

    def _in_piece(self, piece: Piece, bounds: Bounds, count: int, by_latent: bool) -> Listed:
        values = self.made_of(piece.values, piece.latents)
        some = piece.latents if by_latent else piece.tokens
        rows = values.T if by_latent else values
        places = ranking.reaching(rows, lambda maxima: bounds(some, maxima), count)
        tokens, latents = reversed(places) if by_latent else places
        flat = (tokens + piece.tokens.start) * self.shape[1] + latents + piece.latents.start
        pre_acts = affinities = ranking.read(piece.values, tokens, latents)
        if values is not piece.values:
            affinities = ranking.read(values, tokens, latents)
        return Listed(flat, pre_acts, affinities)

    def of(self, latents: Int[Tensor, " n"]) -> "Affinities":
        """Those of some latents, numbered anew."""
        return Affinities(
            self.pre_acts.of(latents), lambda values, some: self.made_of(values, latents[some])
        )

    def sample(self) -> "Affinities":
        """Those of some tokens, numbered anew."""
        step = max(1, self.shape[0] // SAMPLED)
        return Affinities(self.pre_acts.of_tokens(slice(None, None, step)), self.made_of)


def merged(parts: list[Listed]) -> Listed:
    """All their pairs, in order."""
    flat, pre_acts, affinities = (
        torch.cat(fields)
        for fields in zip(*((p.flat, p.pre_acts, p.affinities) for p in parts), strict=True)
    )
    if (flat[1:] > flat[:-1]).all():
        return Listed(flat, pre_acts, affinities)
    flat, order = flat.sort()
    return Listed(flat, pre_acts.index_select(0, order), affinities.index_select(0, order))


def listed(
    selection: Selection, pre_acts: PreActs, above: float | Float[Tensor, " thresholds"]
) -> Selection:
    """`selection`; where it is everything, the pairs with a value above `above`, if these are few.

    For activations that are 0, with gradient 0, where a value is not above. Accelerators, which
    would have to be waited for to know how many these are, list them only if they must.
    """
    everything = Affinities(pre_acts)
    unknown = not everything.listed and pre_acts.max_listed < 1
    if selection.flat is not None or pre_acts.max_listed == 0 or unknown:
        return selection
    if not isinstance(above, Tensor):
        above = pre_acts.x.new_full((1,), above)
    if (everything.sample().values > above).float().mean() > pre_acts.max_listed:
        return selection
    found = everything.above(above)
    batch, d_sae = pre_acts.shape
    return found if len(found.flat) <= pre_acts.max_listed * batch * d_sae else selection
