"""kl: a short fine-tune on what the model predicts with the SAE in it (arXiv 2503.17272)."""

from typing import Annotated, ClassVar, final

from annotated_types import Ge, Gt
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sae_sweeps.interfaces import Architecture, Divergence, FineTune, Progress, Step


@final
class KL(FineTune):
    """loss = (error + a * KL) / 2 + penalty, with a = error / KL held constant in the gradient.

    error is the mean over tokens of ||x - recon||^2, KL that of KL(clean || spliced) in nats; `a`
    makes both weigh the same. All of the SAE is trained, under its own allocator or penalty.
    """

    whole_contexts: ClassVar[bool] = True

    def __init__(
        self, d_in: int, d_sae: int, *, tokens: Annotated[int, Ge(1)], lr: Annotated[float, Gt(0)]
    ) -> None:
        super().__init__()
        self.tokens, self.lr = tokens, lr

    def begin(self, sae: Architecture) -> list[nn.Parameter]:
        return list(sae.parameters())

    def forward(
        self,
        sae: Architecture,
        x: Float[Tensor, "batch d_in"],
        dead: Bool[Tensor, " d_sae"],
        divergence: Divergence | None,
    ) -> tuple[Step, Float[Tensor, ""]]:
        assert divergence is not None
        step = sae(x, dead)
        error = (x - step.recon).pow(2).sum() / len(x)
        kl = divergence(step.recon)
        balance = error.detach() / kl.detach().clamp(min=1e-9)
        return step, (error + balance * kl) / 2 + sae.penalty(step)

    def observe(self, sae: Architecture, step: Step, progress: Progress) -> None:
        sae.observe(step, progress)
