"""JumpReLU: learnt thresholds, by straight-through estimators (arXiv 2407.14435)."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.architecture import weights
from sae_sweeps.architecture.coefficient import Coefficient
from sae_sweeps.engine.acts import Selection, SparseActs
from sae_sweeps.engine.affinities import Affinities, listed
from sae_sweeps.engine.pre_acts import PreActs
from sae_sweeps.engine.sparse import Pairs, per_latent
from sae_sweeps.interfaces import Allocator, Architecture, Progress, SAELensWeights, Step
from sae_sweeps.marks import AtMost


class Jump(torch.autograd.Function):
    """u * 1[u > theta]; its gradient in theta is -(theta / bandwidth) * 1[near theta].

    Near is |u - theta| < bandwidth / 2. `theta` is of each latent, `u` of the pairs, or all.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, theta: Tensor, pairs: Pairs | None, bandwidth: float
    ) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.pairs, ctx.bandwidth = pairs, bandwidth
        return torch.where(u > SparseActs(pairs, u).spread(theta), u, 0.0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        u, theta = ctx.saved_tensors
        spread = SparseActs(ctx.pairs, u).spread(theta)
        near = (u - spread).abs() < ctx.bandwidth / 2
        sums = per_latent(ctx.pairs, torch.where(near, grad, 0.0), len(theta))
        theta_grad = sums * (-theta / ctx.bandwidth)
        return torch.where(u > spread, grad, 0.0), theta_grad, None, None


class L0(torch.autograd.Function):
    """Sum of 1[u > theta]; its gradient in theta is -(1 / bandwidth) * 1[near]."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, theta: Tensor, pairs: Pairs | None, bandwidth: float
    ) -> Tensor:
        ctx.save_for_backward(u, theta)
        ctx.pairs, ctx.bandwidth = pairs, bandwidth
        return (u > SparseActs(pairs, u).spread(theta)).sum().to(u.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None, None]:
        (grad,) = grads
        u, theta = ctx.saved_tensors
        near = (u - SparseActs(ctx.pairs, u).spread(theta)).abs() < ctx.bandwidth / 2
        return (
            None,
            per_latent(ctx.pairs, near, len(theta)) * (-grad / ctx.bandwidth),
            None,
            None,
        )


@final
class JumpReLU(Architecture):
    """acts = S * u * 1[u > theta], u = (x - b_dec) W_enc + b_enc, theta = exp(log_threshold).

    The penalty is l0_coef * (L0 / target_l0 - 1)^2 ("quadratic") or l0_coef * L0 ("linear", the
    paper's). Its straight-through gradient reaches theta from every pre-activation within half a
    bandwidth, below the threshold too. An "auto" coefficient is 1 where quadratic, steered so that
    L0 meets the target where linear, and 0 where an allocator sets the budget; the allocator then
    ranks u * 1[u > theta]. Adam moves log_threshold by at most lr a step, too little to reach theta
    in a short run: hence `threshold_lr_factor`.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        allocator: Allocator,
        *,
        encoder_scale: Annotated[float, Gt(0)],
        l0_penalty: Literal["quadratic", "linear"],
        l0_coef: Annotated[float | Literal["auto"], Ge(0)],
        target_l0: Annotated[float, Gt(0), AtMost("d_sae")],
        coef_warmup_tokens: Annotated[int, Ge(0), AtMost("training.tokens")],
        bandwidth: Annotated[float, Gt(0)],
        initial_threshold: Annotated[float, Gt(0)],
        threshold_lr_factor: Annotated[float, Gt(0)],
    ) -> None:
        super().__init__()
        weights.create(self, d_in, d_sae)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.log_threshold = nn.Parameter(torch.full((d_sae,), math.log(initial_threshold)))
        self.allocator = allocator
        self.encoder_scale, self.bandwidth, self.target_l0 = encoder_scale, bandwidth, target_l0
        self.threshold_lr_factor = threshold_lr_factor
        budgeted, self.quadratic = allocator.sets_budget, l0_penalty == "quadratic"
        coef = 1.0 if l0_coef == "auto" and self.quadratic and not budgeted else l0_coef
        self.l0_coef = Coefficient(coef, target_l0, budgeted, coef_warmup_tokens)

    @staticmethod
    def cost(config: Mapping[str, Any], listed: bool) -> dict[str, float]:
        """What an accelerator's step takes, counted; see `planning.costs.Cost`."""
        if listed:
            return {"matrices": 1.3, "products": 1, "passes": 7}
        if "k" in config["allocator"]:
            return {"matrices": 5.7, "products": 5, "passes": 42}
        return {"matrices": 5.4, "products": 5, "passes": 34}

    def initialise(self, generator: torch.Generator, mean: Float[Tensor, " d_in"]) -> None:
        weights.draw(self, generator, mean, self.encoder_scale)

    def forward(self, x: Float[Tensor, "batch d_in"], dead: Bool[Tensor, " d_sae"]) -> Step:
        pre_acts = weights.project(self, x, self.b_enc)
        threshold = self.log_threshold.exp()
        bound = threshold.detach()
        affinities = Affinities(
            pre_acts, lambda values, latents: torch.where(values > bound[latents], values, 0.0)
        )
        selection = self._listed(pre_acts, self.allocator(affinities))
        selected = pre_acts.at(selection)
        # No rectifier follows, which would cut the gradient of entries just below the threshold.
        jumped = Jump.apply(selected.values, threshold, selected.pairs, self.bandwidth)
        acts = selected.with_values(jumped)
        return weights.decoded(self, x, dead, pre_acts, selection, selected, acts)

    def _listed(self, pre_acts: PreActs, selection: Selection) -> Selection:
        """`selection`; entries just below the threshold, value 0, count: they have a gradient."""
        lowest = self.log_threshold.detach().exp() - self.bandwidth / 2
        return listed(selection, pre_acts, above=lowest)

    def penalty(self, step: Step) -> Float[Tensor, ""]:
        if self.l0_coef.is_zero:
            return step.x.new_zeros(())
        u = step.selected
        if self.allocator.ranks:  # the penalty is on all that are above their threshold
            with torch.no_grad():
                u = step.pre_acts.at(self._listed(step.pre_acts, Selection(None)))
        threshold = self.log_threshold.exp()
        l0 = L0.apply(u.values, threshold, u.pairs, self.bandwidth) / len(step.x)
        cost = (l0 / self.target_l0 - 1) ** 2 if self.quadratic else l0
        return self.l0_coef.value * cost

    @torch.no_grad()
    def observe(self, step: Step, progress: Progress) -> None:
        self.allocator.observe(step, progress)
        self.l0_coef.observe(step, progress)

    def lr_factors(self) -> dict[str, float]:
        return {"log_threshold": self.threshold_lr_factor}

    def diagnostics(self) -> dict[str, float]:
        threshold = self.log_threshold.exp().mean().item()
        return {"train/threshold_mean": threshold, "train/l0_coef": self.l0_coef.value.item()}

    @torch.no_grad()
    def rescale(self, factor: float) -> None:
        for bias in (self.b_enc, self.b_dec):
            bias *= factor
        self.log_threshold += math.log(factor)
        self.bandwidth *= factor
        self.allocator.rescale(factor)

    def saelens(self) -> SAELensWeights | None:
        rule = self.allocator.inference()
        if rule is None or rule.k is not None:
            return None
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        tensors = {name: getattr(self, name).detach() for name in names}
        threshold = self.log_threshold.detach().exp()
        if rule.threshold is not None:
            threshold = torch.maximum(threshold, rule.threshold)
        return SAELensWeights("jumprelu", tensors | {"threshold": threshold}, {})
