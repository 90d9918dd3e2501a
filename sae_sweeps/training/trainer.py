"""The training step, the same for every method."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_sweeps import options
from sae_sweeps.interfaces import Architecture, AuxLoss, Progress, Step


class Trainer:
    """One SAE, its optimiser and its firing counters.

    loss = mean over tokens of ||x - recon||^2, plus the architecture's penalty, plus the auxiliary
    loss.
    """

    def __init__(self, sae: Architecture, aux_loss: AuxLoss, given: options.Training) -> None:
        self.sae, self.aux_loss, self.given = sae, aux_loss, given
        factors = sae.lr_factors()
        groups = [
            {"params": [parameter], "factor": factors.get(name, 1.0)}
            for name, parameter in sae.named_parameters()
        ]
        self.optimizer = torch.optim.Adam(
            groups, lr=given.lr, betas=(given.beta1, given.beta2), fused=True
        )
        self.tokens = 0
        self.tokens_since_fired = torch.zeros(
            sae.W_dec.shape[0], dtype=torch.int64, device=sae.W_dec.device
        )

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents silent for the whole dead window."""
        return self.tokens_since_fired >= self.given.dead_window_tokens

    def step(self, x: Float[Tensor, "batch d_in"], wanted: bool) -> dict[str, Tensor]:
        """Train on one batch; the figures of the step, where `wanted`, as scalars on the device."""
        lr = learning_rate(self.tokens, len(x), self.given)
        step = self.sae(x, self.dead)
        error = (x - step.recon).pow(2).sum() / len(x)
        penalty, aux_loss = self.sae.penalty(step), self.aux_loss(step)
        loss = error + penalty + aux_loss
        self.optimizer.zero_grad()
        loss.backward()
        grad_norm = self._update(lr)
        self._observe(step, lr)
        if not wanted:
            return {}
        variance = (x - x.mean(0)).pow(2).sum() / len(x)
        return {
            "train/loss": loss.detach(),
            "train/fvu": error.detach() / variance,
            "train/l0": step.acts.l0(),
            "train/penalty": penalty.detach(),
            "train/aux_loss": aux_loss.detach(),
            "train/grad_norm": grad_norm,
            "train/lr": torch.tensor(lr),
            "features/dead_frac": self.dead.float().mean(),
        }

    @torch.no_grad()
    def _update(self, lr: float) -> Tensor:
        """Project, clip, step, renormalise: the decoder's rows keep unit norm throughout."""
        W_dec = self.sae.W_dec
        assert W_dec.grad is not None
        W_dec.grad.addcmul_(torch.linalg.vecdot(W_dec.grad, W_dec)[:, None], W_dec, value=-1)
        parameters = self.sae.parameters()
        grad_norm = torch.nn.utils.clip_grad_norm_(parameters, self.given.gradient_clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        self.optimizer.step()
        W_dec /= torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
        return grad_norm

    @torch.no_grad()
    def _observe(self, step: Step, lr: float) -> None:
        batch = len(step.x)
        self.tokens += batch
        silent = step.acts.tokens_per_latent == 0
        self.tokens_since_fired = torch.where(silent, self.tokens_since_fired + batch, 0)
        self.sae.observe(step, Progress(self.tokens, self.given.tokens, lr))


def learning_rate(tokens: int, batch: int, given: options.Training) -> float:
    """Linear warm-up from 0, constant, linear decay to 0, at the batch after `tokens`."""
    up = (tokens + batch) / max(given.warmup_tokens, 1)
    down = (given.tokens - tokens) / max(given.decay_tokens, 1)
    return given.lr * min(1.0, up, down)
