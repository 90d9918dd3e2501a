"""Matryoshka: the first latents reconstruct the input without the later ones (arXiv 2503.17547)."""

from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from typing import Annotated, Any, Literal, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.architecture.relu import ReLU
from sae_sweeps.engine import device
from sae_sweeps.engine.acts import SparseActs, decode
from sae_sweeps.engine.sparse import Pairs
from sae_sweeps.interfaces import Allocator, Step
from sae_sweeps.marks import AtMost


def group_ends(fractions: list[float], d_sae: int) -> list[int]:
    """Where each group of latents ends: cumulative fractions, rounded, at least one latent each."""
    rounded = [round(share * d_sae) for share in accumulate(fractions)]
    ends = accumulate(rounded[:-1], lambda end, after: max(after, end + 1), initial=0)
    left = range(len(fractions) - 1, 0, -1)  # groups that follow
    return [min(end, d_sae - n) for end, n in zip(list(ends)[1:], left, strict=True)] + [d_sae]


def prefix_recons(
    acts: SparseActs,
    W_dec: Float[Tensor, "d_sae d_in"],
    ends: list[int],
    borders: Int[Tensor, " groups"],
) -> Float[Tensor, "batch groups d_in"]:
    """acts[:, :end] @ W_dec[:end] for each end, in the work of one such product.

    `borders` are the ends on the device.
    """
    batch, d_sae = acts.shape
    if acts.pairs is None:
        parts = [acts.values[:, a:b] @ W_dec[a:b] for a, b in pairwise([0, *ends])]
        return prefix_sums(torch.stack(parts, dim=1))
    # Triples are ordered by token and latent, so also by token and group: a row for each of these.
    tokens, latents = acts.tokens, acts.latents
    groups = torch.searchsorted(borders, latents, right=True)
    rows = tokens * len(ends) + groups
    by_group = Pairs((batch * len(ends), d_sae), rows * d_sae + latents)
    recons = decode(SparseActs(by_group, acts.values), W_dec)
    return prefix_sums(recons.view(batch, len(ends), -1))


def prefix_sums(parts: Float[Tensor, "batch groups d_in"]) -> Float[Tensor, "batch groups d_in"]:
    """The first part, the first two, and so on; CUDA's own cumsum adds in no fixed order."""
    if device.has_fused_kernels(parts.device):
        return torch.stack(list(accumulate(parts.unbind(1))), dim=1)
    return parts.cumsum(1)


@final
class Matryoshka(ReLU):
    """ReLU whose latents are nested: each prefix of groups reconstructs alone.

    The loss is the paper's sum over prefixes m of ||x - (acts[:, :m] W_dec[:m] + b_dec)||^2, each
    as the reconstruction loss: that one is the last prefix, the others are added to the L1 penalty.
    The gradient is larger by about their number, which Adam does not mind.
    """

    borders: Tensor

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        allocator: Allocator,
        *,
        encoder_scale: Annotated[float, Gt(0)],
        l1_coef: Annotated[float | Literal["auto"], Ge(0)],
        target_l0: Annotated[float, Gt(0), AtMost("d_sae")],
        fractions: list[float],
    ) -> None:
        super().__init__(
            d_in,
            d_sae,
            allocator,
            encoder_scale=encoder_scale,
            l1_coef=l1_coef,
            target_l0=target_l0,
            coef_warmup_tokens=0,
            p=1.0,
            p_start_tokens=0,
            p_end_tokens=0,
            p_steps=1,
            unit_norm=True,
        )
        self.ends = group_ends(fractions, d_sae)
        self.register_buffer("borders", torch.tensor(self.ends), persistent=False)

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        fractions = config["architecture"]["fractions"]
        if any(share <= 0 for share in fractions) or abs(sum(fractions) - 1) > 1e-6:
            yield (
                f"architecture.fractions is {fractions}, expected positive numbers that sum to 1."
            )
        elif len(fractions) > config["d_sae"]:
            yield (
                f"architecture.fractions has {len(fractions)} parts, "
                "expected at most d_sae of them."
            )

    @staticmethod
    def cost(config: Mapping[str, Any], listed: bool) -> dict[str, float]:
        """What an accelerator's step takes, counted; see `planning.costs.Cost`."""
        if listed:
            return {"matrices": 1.2, "products": 1, "passes": 17}
        if "k" in config["allocator"]:
            return {"matrices": 7.1, "products": 8, "passes": 72}
        return {"matrices": 5.8, "products": 8, "passes": 62}

    def penalty(self, step: Step) -> Float[Tensor, ""]:
        prefixes = prefix_recons(step.acts, self.W_dec, self.ends, self.borders)[:, :-1]
        errors = (step.x - self.b_dec)[:, None] - prefixes
        return super().penalty(step) + errors.pow(2).sum() / len(step.x)
