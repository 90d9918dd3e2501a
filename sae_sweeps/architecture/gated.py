"""Gated: one path decides which latents are active, a tied one how strongly (arXiv 2404.16014)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

import torch
from annotated_types import Ge, Gt, Le
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.architecture import weights
from sae_sweeps.architecture.coefficient import Coefficient
from sae_sweeps.architecture.penalty import SparsityPenalty
from sae_sweeps.engine.acts import decode
from sae_sweeps.engine.affinities import Affinities, listed
from sae_sweeps.interfaces import Allocator, Architecture, Progress, SAELensWeights, Step
from sae_sweeps.marks import AtMost


@final
class Gated(Architecture):
    """acts = 1[gate > 0] * S * relu(magnitude), both linear in x - b_dec and tied by exp(r_mag).

    gate = (x - b_dec) W_enc + b_gate; magnitude = exp(r_mag) * (gate - b_gate) + b_mag.
    The penalty is l1_coef * sum(relu(gate)^p) plus the auxiliary reconstruction from relu(gate)
    through the detached decoder, whose `b_dec` is detached as well; no gradient passes the
    indicator. With an allocator S ranks the gate (our definition, unpublished).
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
    ) -> None:
        super().__init__()
        weights.create(self, d_in, d_sae)
        self.b_gate = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.allocator = allocator
        self.encoder_scale = encoder_scale
        budgeted = allocator.sets_budget
        coefficient = Coefficient(l1_coef, target_l0, budgeted, coef_warmup_tokens)
        self.sparsity = SparsityPenalty(coefficient, p, p_start_tokens, p_end_tokens, p_steps)

    @staticmethod
    def cost(config: Mapping[str, Any], listed: bool) -> dict[str, float]:
        """What an accelerator's step takes, counted; see `planning.costs.Cost`."""
        if listed:
            return {"matrices": 0.9, "products": 1, "passes": 10}
        if "k" in config["allocator"]:
            return {"matrices": 8.2, "products": 7, "passes": 83}
        if config["architecture"]["p"] < 1:
            return {"matrices": 12.2, "products": 7, "passes": 88}
        return {"matrices": 7.4, "products": 7, "passes": 56}

    def initialise(self, generator: torch.Generator, mean: Float[Tensor, " d_in"]) -> None:
        weights.draw(self, generator, mean, self.encoder_scale)

    def forward(self, x: Float[Tensor, "batch d_in"], dead: Bool[Tensor, " d_sae"]) -> Step:
        gates = weights.project(self, x, self.b_gate)
        selection = listed(self.allocator(Affinities(gates)), gates, above=0.0)
        shared = gates.projections(selection)
        gate = shared.values + shared.spread(self.b_gate)
        magnitude = shared.times(self.r_mag.exp()).values + shared.spread(self.b_mag)
        acts = shared.with_values(magnitude.where(gate > 0, 0.0)).relu()
        selected = shared.with_values(gate)
        return weights.decoded(self, x, dead, gates, selection, selected, acts)

    def penalty(self, step: Step) -> Float[Tensor, ""]:
        gate_acts = step.selected.relu()
        aux_recon = decode(gate_acts, self.W_dec.detach()) + self.b_dec.detach()
        aux = (step.x - aux_recon).pow(2).sum()
        return (self.sparsity(gate_acts.values) + aux) / len(step.x)

    @torch.no_grad()
    def observe(self, step: Step, progress: Progress) -> None:
        self.allocator.observe(step, progress)
        self.sparsity.observe(lambda: step.selected.values.relu(), step, progress)

    def diagnostics(self) -> dict[str, float]:
        return self.sparsity.diagnostics()

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        for bias in (self.b_gate, self.b_mag, self.b_dec):
            bias *= factor
        self.allocator.rescale(factor)

    def saelens(self) -> SAELensWeights | None:
        rule = self.allocator.inference()
        if rule is None or rule.k is not None:
            return None
        names = ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag")
        tensors = {name: getattr(self, name).detach() for name in names}
        if rule.threshold is not None:
            tensors["b_gate"] = self.b_gate.detach() - rule.threshold.clamp(min=0)
        return SAELensWeights("gated", tensors, {})
