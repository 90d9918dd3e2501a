"""The sparsity penalty of ReLU and Gated: L1, or its p-annealed form (arXiv 2408.00113)."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from sae_sweeps.architecture.coefficient import Coefficient
from sae_sweeps.interfaces import Progress, Step

FLOOR = 1e-5
"""Below it f^p goes on as a line to 0, so that its slope is finite (our design)."""
BATCHES = 10
"""Last batches whose sums carry lambda from one exponent to the next."""


def power(values: Tensor, p: Tensor | float) -> Tensor:
    """values^p for values of at least 0, its slope at most that of the line below FLOOR."""
    above = values.clamp(min=FLOOR) ** p
    return torch.where(values > FLOOR, above, values * FLOOR ** (p - 1))


@final
class SparsityPenalty(nn.Module):
    """lambda * sum of f^p, in which p falls from 1 to its last value in equal steps.

    The steps end equal parts of the tokens between `p_start_tokens` and `p_end_tokens`. At each
    lambda is multiplied by sum f^p_old / sum f^p_new over the last BATCHES batches, so that the
    penalty does not jump; a steered lambda is steered on from there. A last value of 1 is L1.
    """

    p: Tensor
    sums: Tensor

    def __init__(
        self,
        coefficient: Coefficient,
        p: float,
        p_start_tokens: int,
        p_end_tokens: int,
        p_steps: int,
    ) -> None:
        super().__init__()
        self.coefficient, self.last, self.steps = coefficient, p, p_steps
        self.start, self.span = p_start_tokens, max(p_end_tokens - p_start_tokens, 1)
        self.register_buffer("p", torch.tensor(1.0))
        self.register_buffer("sums", torch.zeros(BATCHES, 2))  # at the present p, at the next

    def forward(self, values: Tensor, tokens: int = 1) -> Tensor:
        """The penalty of a batch's activations, as a mean over so many tokens."""
        if self.coefficient.is_zero:
            return values.new_zeros(())
        powers = values if self.last == 1 else power(values, self.p)
        return self.coefficient.value * powers.sum() / tokens

    def observe(self, values: Callable[[], Tensor], step: Step, progress: Progress) -> None:
        """Steer lambda; at the end of a part of the annealing lower p.

        `values` are the step's, asked for only while p is annealed.
        """
        self.coefficient.observe(step, progress)
        batch = len(step.x)
        done, now = self._steps_at(progress.tokens - batch), self._steps_at(progress.tokens)
        if self.last == 1 or done == self.steps or progress.tokens <= self.start:
            return
        exponents = self._exponent(done), self._exponent(self._steps_next(done, progress, batch))
        sums = torch.stack([power(values(), p).sum() for p in exponents]) / batch
        self.sums.copy_(torch.cat([self.sums[1:], sums[None]]))
        if now > done:
            old, new = self.sums.sum(0)
            self.coefficient.scale(torch.where(new > 0, old / new, 1.0))
            self.p.fill_(exponents[1])
            self.sums.zero_()

    def _steps_at(self, tokens: int) -> int:
        return min(max((tokens - self.start) * self.steps // self.span, 0), self.steps)

    def _steps_next(self, done: int, progress: Progress, batch: int) -> int:
        """Steps done after the first batch, this one or a later one, that adds any to `done`."""
        end = self.start - (-(done + 1) * self.span // self.steps)  # of this part, rounded up
        batches = max(-((progress.tokens - end) // batch), 0)
        return self._steps_at(progress.tokens + batches * batch)

    def _exponent(self, steps: int) -> float:
        return 1 + (self.last - 1) * steps / self.steps

    def diagnostics(self) -> dict[str, float]:
        """The coefficient, and the exponent where it falls."""
        exponent = {} if self.last == 1 else {"train/p": self.p.item()}
        return {"train/l1_coef": self.coefficient.value.item()} | exponent
