"""The training step, the same for every method."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sae_sweeps.config.options import RunConfig, TrainingOptions
from sae_sweeps.config.signature import build
from sae_sweeps.engine import device
from sae_sweeps.interfaces import (
    Architecture,
    AuxLoss,
    Optimizer,
    Progress,
    Resampling,
    Schedule,
    Step,
)

NewOptimizer = Callable[[list[nn.Parameter], list[float]], Optimizer]
"""Of parameters, and how many times the common learning rate each is to have."""
ROWS = 256
"""Rows that a CPU projects together."""


class Trainer:
    """One SAE, its optimiser and its firing counters.

    loss = mean over tokens of ||x - recon||^2, plus the architecture's penalty, plus the auxiliary
    loss.
    """

    def __init__(
        self,
        sae: Architecture,
        aux_loss: AuxLoss,
        resampling: Resampling,
        new_optimizer: NewOptimizer,
        schedule: Schedule,
        given: TrainingOptions,
    ) -> None:
        self.sae, self.aux_loss, self.resampling, self.given = sae, aux_loss, resampling, given
        self.new_optimizer, self.schedule = new_optimizer, schedule
        factors, named = sae.lr_factors(), dict(sae.named_parameters())
        self.optimizer = new_optimizer(
            list(named.values()), [factors.get(name, 1.0) for name in named]
        )
        on = sae.W_dec.device
        self.bfloat16 = given.precision == "bfloat16" or (
            given.precision == "auto"
            and on.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False)
        )
        self.tokens = 0
        self.replaced = 0
        self.tokens_since_fired = torch.zeros(sae.W_dec.shape[0], dtype=torch.int64, device=on)

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents silent for the whole dead window."""
        return self.tokens_since_fired >= self.given.dead_window_tokens

    def autocast(self) -> torch.autocast:
        """What the forward pass runs under."""
        kind = self.sae.W_dec.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16)

    def step(self, x: Float[Tensor, "batch d_in"], wanted: bool) -> dict[str, Tensor]:
        """Train on one batch; the figures of the step, where `wanted`, as scalars on the device."""
        lr = self.optimizer.lr * self.schedule.factor(self.tokens, len(x))
        lr *= self.resampling.lr_factor(self.tokens)
        dead = self.dead
        concerned = self.aux_loss.concerned(dead, self.sae.allocator.sets_budget)
        with self.autocast():
            step = replace(self.sae(x, dead), concerned=concerned)
            error = squared_error(step)
            penalty, aux_loss = self.sae.penalty(step), self.aux_loss(step)
            loss = error + penalty + aux_loss
        loss.backward()
        grad_norm = update(self.sae, self.optimizer, self.given.gradient_clip_norm, lr)
        self.optimizer.zero_grad()  # other members of the pack have use for the memory
        self._observe(step, lr)
        if not wanted:
            return {}
        found = figures(step, loss, grad_norm, lr, self.dead) | {
            "train/penalty": penalty.detach(),
            "train/aux_loss": aux_loss.detach(),
        }
        if self.replaced:
            found["features/resampled"] = torch.tensor(self.replaced)
        return found

    @torch.no_grad()
    def _observe(self, step: Step, lr: float) -> None:
        progress = Progress(self.tokens + len(step.x), self.given.tokens, lr)
        self.count(step, len(step.x))
        self.sae.observe(step, progress)
        self.aux_loss.observe(step, progress)
        replaced = self.resampling(self.sae, step, progress)
        if replaced is not None:
            self.tokens_since_fired[replaced] = 0
            self.replaced += len(replaced)
            self._forget(replaced)

    def count(self, step: Step, batch: int) -> None:
        """Count a step's `batch` tokens, and for each latent those since it fired."""
        self.tokens += batch
        silent = step.acts.tokens_per_latent == 0
        self.tokens_since_fired = (self.tokens_since_fired + batch) * silent

    def _forget(self, latents: Int[Tensor, " n"]) -> None:
        """Have the optimiser forget these latents' parameters."""
        W_enc, W_dec, b_dec = self.sae.W_enc, self.sae.W_dec, self.sae.b_dec
        for parameter in self.sae.parameters():
            # By identity first: shapes do not tell them apart where d_sae is d_in.
            if parameter is W_enc:
                self.optimizer.forget(parameter, 1, latents)
            elif parameter is not b_dec and len(parameter) == len(W_dec):
                self.optimizer.forget(parameter, 0, latents)


def new_trainer(config: RunConfig, sae: Architecture) -> Trainer:
    """The trainer that a run's config describes, of an SAE that is on its device."""
    d_sae, d_in = sae.W_dec.shape
    aux_loss, resampling = (
        build(config.nodes[group], d_in, d_sae).to(sae.W_dec.device)
        for group in ("aux_loss", "resampling")
    )
    return Trainer(
        sae,
        aux_loss,
        resampling,
        partial(build, config.nodes["optimizer"]),
        build(config.nodes["schedule"], config.training.tokens),
        config.training,
    )


def squared_error(step: Step) -> Float[Tensor, ""]:
    """Mean over tokens of ||x - recon||^2."""
    # The other way round its gradient would have to be negated.
    return (step.recon - step.x).pow(2).sum() / len(step.x)


@torch.no_grad()
def update(
    sae: Architecture, optimizer: Optimizer, clip_norm: float, lr: float
) -> Float[Tensor, ""]:
    """Project, clip, step, renormalise; the norm of the gradient before it was clipped.

    Where the decoder is trained and its rows are to have unit norm, they keep it throughout.
    """
    W_dec = sae.W_dec
    # A phase that leaves the decoder as it is may pass a gradient through it all the same.
    trained = any(parameter is W_dec for parameter in optimizer.trained)
    constrained = sae.unit_norm and trained and W_dec.grad is not None
    if constrained and W_dec.grad is not None:
        W_dec.grad = projected(W_dec.grad, W_dec)
    grad_norm = optimizer.clip(clip_norm)
    optimizer.update(lr)
    if constrained:
        W_dec /= torch.linalg.vector_norm(W_dec, dim=1, keepdim=True)
    return grad_norm


def projected(
    grads: Float[Tensor, "rows d_in"], rows: Float[Tensor, "rows d_in"]
) -> Float[Tensor, "rows d_in"]:
    """Gradients of rows of unit norm without what would only change the norm.

    On CUDA by the kernel that PyTorch has for the gradient of normalised rows, which is this and
    reads them once; on CPUs in place, of a few rows whose products are still in a cache.
    """
    if device.has_fused_kernels(grads.device):
        ones = rows.new_ones(len(rows), 1)
        backward = torch.ops.aten._weight_norm_interface_backward
        return backward(grads.contiguous(), rows.detach(), ones, ones, 0)[0]
    for some, own in zip(grads.split(ROWS), rows.split(ROWS), strict=True):
        some.addcmul_(torch.linalg.vecdot(some, own)[:, None], own, value=-1)
    return grads


def figures(
    step: Step, loss: Tensor, grad_norm: Tensor, lr: float, dead: Bool[Tensor, " d_sae"]
) -> dict[str, Tensor]:
    """What every row of `metrics.jsonl` holds, as scalars on the device."""
    variance = (step.x - step.x.mean(0)).pow(2).sum() / len(step.x)
    return {
        "train/loss": loss.detach(),
        "train/fvu": squared_error(step).detach() / variance,
        "train/l0": step.acts.l0(),
        "train/grad_norm": grad_norm,
        "train/lr": torch.tensor(lr),
        "features/dead_frac": dead.float().mean(),
        "perf/sparse": torch.tensor(float(step.acts.pairs is not None)),
    }
