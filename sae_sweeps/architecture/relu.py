"""ReLU with an L1 penalty (arXiv 2309.08600), and the carrier of every allocator."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.architecture import weights
from sae_sweeps.architecture.coefficient import Coefficient
from sae_sweeps.architecture.penalty import SparsityPenalty
from sae_sweeps.engine.acts import SparseActs
from sae_sweeps.engine.affinities import Affinities, listed
from sae_sweeps.interfaces import Allocator, Architecture, Progress, SAELensWeights, Step
from sae_sweeps.marks import AtMost


class ReLU(Architecture):
    """acts = S * relu((x - b_dec) W_enc + b_enc), recon = acts W_dec + b_dec.

    S is the allocator's selection. The penalty is l1_coef * mean over tokens of sum(acts^p). Where
    the decoder's rows may have any norm, activations count times their row's in the penalty, for
    the allocator and in SAELens' layout, so that moving a factor between the two changes nothing
    (Anthropic's update of April 2024).
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        allocator: Allocator,
        *,
        encoder_scale: Annotated[float, Gt(0)],
        l1_coef: Annotated[float | Literal["auto"], Ge(0)],
        target_l0: Annotated[float, Gt(0), AtMost("d_sae")],
        coef_warmup_tokens: Annotated[int, Ge(0), AtMost("training.tokens")],
        p: Annotated[float, Gt(0), Le(1)],
        p_start_tokens: Annotated[int, Ge(0), AtMost(".p_end_tokens")],
        p_end_tokens: Annotated[int, Ge(1), AtMost("training.tokens")],
        p_steps: Annotated[int, Ge(1)],
        unit_norm: bool,
    ) -> None:
        super().__init__()
        weights.create(self, d_in, d_sae)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.allocator = allocator
        self.encoder_scale, self.unit_norm = encoder_scale, unit_norm
        budgeted = allocator.sets_budget
        coefficient = Coefficient(l1_coef, target_l0, budgeted, coef_warmup_tokens)
        self.sparsity = SparsityPenalty(coefficient, p, p_start_tokens, p_end_tokens, p_steps)

    @staticmethod
    def cost(config: Mapping[str, Any], listed: bool) -> dict[str, float]:
        """What an accelerator's step takes, counted; see `planning.costs.Cost`."""
        node = config["architecture"]
        unit_norm = node["unit_norm"]
        if listed:
            matrices, passes = (0.9, 5) if unit_norm else (1.6, 11)
            return {"matrices": matrices, "products": 1, "passes": passes}
        if "k" in config["allocator"]:
            return {"matrices": 5.7, "products": 5, "passes": 30 if unit_norm else 40}
        if node["p"] < 1:
            return {"matrices": 10.3, "products": 5, "passes": 53}
        matrices, passes = (4.5, 21) if unit_norm else (5.7, 31)
        return {"matrices": matrices, "products": 5, "passes": passes}

    def initialise(self, generator: torch.Generator, mean: Float[Tensor, " d_in"]) -> None:
        weights.draw(self, generator, mean, self.encoder_scale)

    def forward(self, x: Float[Tensor, "batch d_in"], dead: Bool[Tensor, " d_sae"]) -> Step:
        pre_acts = weights.project(self, x, self.b_enc)
        affinities = Affinities(pre_acts)
        if not self.unit_norm:
            norms = self._norms().detach()
            affinities = Affinities(pre_acts, lambda values, latents: values * norms[latents])
        selection = listed(self.allocator(affinities), pre_acts, above=0.0)
        selected = pre_acts.at(selection)
        acts = selected.relu()
        return weights.decoded(self, x, dead, pre_acts, selection, selected, acts)

    def penalty(self, step: Step) -> Float[Tensor, ""]:
        return self.sparsity(self._weighted(step.acts), len(step.x))

    def _weighted(self, acts: SparseActs) -> Tensor:
        """The activations' values times the norms of their rows."""
        return acts.values if self.unit_norm else acts.times(self._norms()).values

    def _norms(self) -> Float[Tensor, " d_sae"]:
        """The decoder rows' norms, never 0."""
        return torch.linalg.vector_norm(self.W_dec, dim=1).clamp(min=1e-12)

    @torch.no_grad()
    def observe(self, step: Step, progress: Progress) -> None:
        self.allocator.observe(step, progress)
        self.sparsity.observe(lambda: self._weighted(step.acts), step, progress)

    def diagnostics(self) -> dict[str, float]:
        return self.sparsity.diagnostics()

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        for bias in (self.b_enc, self.b_dec):
            bias *= factor
        self.allocator.rescale(factor)

    def saelens(self) -> SAELensWeights | None:
        rule = self.allocator.inference()
        if rule is None:
            return None
        tensors = {
            name: getattr(self, name).detach() for name in ("W_enc", "b_enc", "W_dec", "b_dec")
        }
        if not self.unit_norm:  # SAELens ranks and compares pre-activations as they are
            norms = self._norms().detach()
            tensors["W_enc"], tensors["b_enc"] = tensors["W_enc"] * norms, tensors["b_enc"] * norms
            tensors["W_dec"] = tensors["W_dec"] / norms[:, None]
        if rule.k is not None:
            cfg = {"k": rule.k, "rescale_acts_by_decoder_norm": False}
            return SAELensWeights("topk", tensors, cfg)
        if rule.threshold is None:
            return SAELensWeights("standard", tensors, {})
        return SAELensWeights("jumprelu", tensors | {"threshold": rule.threshold.clamp(min=0)}, {})
