"""The last phase of a run: what its `fine_tune` group trains, after training proper."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_sweeps.interfaces import FineTune, Progress
from sae_sweeps.stream.live import Stream
from sae_sweeps.training.trainer import Trainer, figures, update


class FineTuner:
    """A fresh optimiser, at a learning rate that falls linearly to 0.

    Tokens go on being counted by the trainer, whose SAE and dead latents these are.
    """

    def __init__(self, trainer: Trainer, fine_tune: FineTune, stream: Stream) -> None:
        self.trainer, self.fine_tune, self.stream = trainer, fine_tune, stream
        self.tokens = 0
        # An optimiser must be given something to train.
        parameters = fine_tune.begin(trainer.sae) or [nn.Parameter(torch.zeros(0))]
        self.optimizer = trainer.new_optimizer(parameters, [1.0] * len(parameters))

    def step(self, batch: Float[Tensor, "batch d_in"], wanted: bool) -> dict[str, Tensor]:
        """Train on one batch, or on as many tokens in context; figures where `wanted`."""
        trainer, sae = self.trainer, self.trainer.sae
        lr = self.fine_tune.lr * max(0.0, 1 - self.tokens / self.fine_tune.tokens)
        x, divergence = batch, None
        if self.fine_tune.whole_contexts:
            x, divergence = self.stream.contexts(trainer.tokens, len(batch))
        with trainer.autocast():
            step, loss = self.fine_tune(sae, x, trainer.dead, divergence)
        loss.backward()
        grad_norm = update(sae, self.optimizer, trainer.given.gradient_clip_norm, lr)
        sae.zero_grad()  # of what the phase does not train, too
        self.optimizer.zero_grad()
        self.tokens += len(batch)
        tokens = trainer.tokens + len(batch)
        with torch.no_grad():
            trainer.count(step, len(batch))
            self.fine_tune.observe(sae, step, Progress(tokens, trainer.given.tokens, lr))
        return figures(step, loss, grad_norm, lr, trainer.dead) if wanted else {}
