"""scale: one factor per latent, which mends feature suppression (Wright & Sharkey 2024)."""

from dataclasses import replace
from typing import Annotated, ClassVar, final

import torch
from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.engine.acts import decode
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Architecture, Divergence, FineTune, Step


@final
class Scale(FineTune):
    """recon = (s * acts) W_dec + b_dec with the SAE frozen; s is learnt on the error alone.

    An L1 penalty makes activations smaller than reconstruction wants; without the penalty their
    size can be set right, while which latents are active stays as it is. Latents are active as at
    inference, without a batch. In the end s is folded into the rows of `W_dec`.
    """

    whole_contexts: ClassVar[bool] = False

    def __init__(
        self, d_in: int, d_sae: int, *, tokens: Annotated[int, Ge(1)], lr: Annotated[float, Gt(0)]
    ) -> None:
        super().__init__()
        self.tokens, self.lr = tokens, lr
        self.factors = nn.Parameter(torch.ones(d_sae))

    def begin(self, sae: Architecture) -> list[nn.Parameter]:
        if sae.allocator.sets_budget and not sae.unit_norm:
            # Folding s would change what the allocator ranks, activations times their rows' norms.
            raise ConfigError(
                "fine_tune: a scale needs allocator=none, or an architecture whose rows keep unit "
                "norm (unit_norm=true)."
            )
        return [self.factors]

    def forward(
        self,
        sae: Architecture,
        x: Float[Tensor, "batch d_in"],
        dead: Bool[Tensor, " d_sae"],
        divergence: Divergence | None,
    ) -> tuple[Step, Float[Tensor, ""]]:
        with torch.no_grad():
            step = sae.eval()(x, dead)
        recon = step.recon + decode(step.acts.times(self.factors - 1), step.W_dec.detach())
        error = (x - recon).pow(2).sum() / len(x)
        return replace(step, recon=recon), error

    @torch.no_grad()
    def fold(self, sae: Architecture) -> None:
        sae.W_dec.mul_(self.factors[:, None])
