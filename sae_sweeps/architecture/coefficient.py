"""The coefficient of a sparsity penalty: fixed, or steered so that L0 meets a target.

The steering is our design; no paper prescribes it.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from sae_sweeps.interfaces import Progress, Step

FREEZE_AT = 0.8
"""Share of the tokens after which the coefficient stays as it is."""
FIRST = 0.01
"""Where steering begins; inputs have unit mean square norm."""
GAIN = 20.0
"""Change of log lambda per unit of log L0 off target, per step and unit of learning rate.

In proportion to the learning rate because L0 answers a new lambda that fast. Tuned on the embedded
model: half and double behave alike, five times oscillates.
"""
DAMPING = 4.0
"""Weight of the change of log L0 beside its distance from the target."""


class Coefficient(nn.Module):
    """lambda in `loss + lambda * penalty`.

    A number is kept. "auto" is 0 where an allocator sets the budget, else steered: each step moves
    log lambda by GAIN * lr * (log(L0 / target) + DAMPING * change of log L0); the second term damps
    the oscillation that the optimiser's lag would cause. Frozen for the last fifth of training.
    Over the first `warmup_tokens` lambda rises linearly from 0, and is not steered.
    """

    log_value: Tensor
    log_l0: Tensor
    risen: Tensor

    def __init__(
        self,
        coef: float | Literal["auto"],
        target_l0: float,
        budgeted: bool,
        warmup_tokens: int,
    ) -> None:
        super().__init__()
        self.warmup_tokens = warmup_tokens
        self.steered = coef == "auto" and not budgeted
        self.target_l0 = target_l0
        self.is_zero = not self.steered and coef in ("auto", 0)
        first = FIRST if self.steered else (0.0 if coef == "auto" else coef)
        self.register_buffer("log_value", torch.tensor(first, dtype=torch.float32).log())
        self.register_buffer("log_l0", torch.tensor(math.inf, dtype=torch.float32))
        self.register_buffer("risen", torch.tensor(float(warmup_tokens == 0)))

    @property
    def value(self) -> Tensor:
        """The coefficient, a scalar."""
        return self.log_value.exp() * self.risen

    def scale(self, factor: Tensor) -> None:
        """Multiply the coefficient."""
        self.log_value += factor.log()

    def observe(self, step: Step, progress: Progress) -> None:
        """Steer by the L0 of the last batch, or go on rising."""
        if self.is_zero:
            return
        if progress.tokens <= self.warmup_tokens:
            self.risen.fill_(progress.tokens / self.warmup_tokens)
            return
        self.risen.fill_(1.0)
        if not self.steered or progress.tokens > FREEZE_AT * progress.tokens_total:
            return
        log_l0 = step.acts.l0().clamp(min=0.1).log()
        change = torch.where(self.log_l0.isfinite(), (log_l0 - self.log_l0).clamp(-1, 1), 0.0)
        error = (log_l0 - math.log(self.target_l0)).clamp(-1, 1)
        self.log_value += GAIN * progress.lr * (error + DAMPING * change)
        self.log_l0.copy_(log_l0)
