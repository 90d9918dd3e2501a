"""ReLU with an L1 penalty (arXiv 2309.08600), and the carrier of every allocator."""

from typing import Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.architecture import weights
from sae_sweeps.architecture.coefficient import Coefficient
from sae_sweeps.interfaces import Allocator, Architecture, Progress, SAELensWeights, Step
from sae_sweeps.sparse import decode


@final
class ReLU(Architecture):
    """acts = S * relu((x - b_dec) W_enc + b_enc), recon = acts W_dec + b_dec.

    S is the allocator's selection. The penalty is l1_coef * mean over tokens of sum(acts).
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        allocator: Allocator,
        *,
        encoder_scale: float,
        l1_coef: float | Literal["auto"],
        target_l0: float,
    ) -> None:
        super().__init__()
        weights.create(self, d_in, d_sae)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.allocator = allocator
        self.encoder_scale = encoder_scale
        self.l1_coef = Coefficient(l1_coef, target_l0, allocator.sets_budget)

    def initialise(self, generator: torch.Generator, mean: Float[Tensor, " d_in"]) -> None:
        weights.draw(self, generator, mean, self.encoder_scale)

    def forward(self, x: Float[Tensor, "batch d_in"], dead: Bool[Tensor, " d_sae"]) -> Step:
        pre_acts = weights.project(self, x, self.b_enc)
        affinities = pre_acts.detach()
        selection = self.allocator(affinities).among(lambda: affinities > 0)
        acts = selection.of(pre_acts).relu()
        recon = decode(acts, self.W_dec) + self.b_dec
        budgeted = self.allocator.sets_budget
        return Step(x, pre_acts, affinities, selection, acts, recon, self.W_dec, dead, budgeted)

    def penalty(self, step: Step) -> Float[Tensor, ""]:
        return self.l1_coef.value * step.acts.values.sum() / step.x.shape[0]

    @torch.no_grad()
    def observe(self, step: Step, progress: Progress) -> None:
        self.allocator.observe(step, progress)
        self.l1_coef.observe(step, progress)

    def diagnostics(self) -> dict[str, float]:
        return {"train/l1_coef": self.l1_coef.value.item()}

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
        if rule.k is not None:
            cfg = {"k": rule.k, "rescale_acts_by_decoder_norm": False}
            return SAELensWeights("topk", tensors, cfg)
        if rule.threshold is None:
            return SAELensWeights("standard", tensors, {})
        return SAELensWeights("jumprelu", tensors | {"threshold": rule.threshold.clamp(min=0)}, {})
