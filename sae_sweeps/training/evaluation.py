"""Measures a trained SAE on held-out tokens, with and without a batch to allocate over."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_sweeps.config.options import EvaluationOptions
from sae_sweeps.interfaces import Architecture, TargetModel
from sae_sweeps.record.result import METRICS_VERSION
from sae_sweeps.stream.live import Stream
from sae_sweeps.system import interrupt
from sae_sweeps.training import metrics
from sae_sweeps.training.matching import recovery


@dataclass(frozen=True)
class Evaluation:
    """The measured part of a `Result`, under the same names."""

    metrics: dict[str, float]
    """batch-free inference: the Pareto point; with cross-entropy where there is a model, and
    with how much is recovered of a known dictionary"""
    batch: dict[str, float]
    """allocation over batches of `stream.batch_tokens`, as in training"""
    evaluation: dict[str, int]
    """what was measured on, and by which version of the figures"""
    density_histogram: dict[str, list[float]]
    l0_histogram: dict[str, list[int]]
    fvu_by_l0_decile: list[dict[str, float]]


def evaluate(sae: Architecture, stream: Stream, given: EvaluationOptions) -> Evaluation:
    """Measure `sae` on the held-out tokens of its stream."""
    x = stream.held_out
    d_in, batch_tokens = x.shape[1], stream.given.batch_tokens
    zero = stream.scaled(torch.zeros_like(x[0]))
    measured = measure(sae.eval(), x, zero, batch_tokens)
    free = metrics.summary(measured, d_in, stream.scale)
    batch = metrics.summary(measure(sae.train(), x, zero, batch_tokens), d_in, stream.scale)
    free = free | known_truth(sae, stream.target)
    if stream.target.has_loss and given.ce_tokens:
        free = free | cross_entropy(sae.eval(), stream, given.ce_tokens)
    measured_on = {
        "tokens": len(x),
        "left_out_tokens": stream.left_out,
        "ce_tokens": given.ce_tokens if stream.target.has_loss else 0,
        "metrics_version": METRICS_VERSION,
    }
    return Evaluation(
        free,
        batch,
        measured_on,
        metrics.density_histogram(measured),
        metrics.l0_histogram(measured),
        metrics.fvu_by_l0_decile(measured),
    )


@torch.no_grad()
def measure(
    sae: Architecture,
    x: Float[Tensor, "tokens d_in"],
    zero: Float[Tensor, " d_in"],
    batch_tokens: int,
) -> metrics.Measured:
    """Run `sae` in its present mode over `x`, a batch at a time; `zero` is 0 of the model's own."""
    dead = torch.zeros(sae.W_dec.shape[0], dtype=torch.bool, device=x.device)
    mean = x.mean(0)
    columns: list[tuple[Tensor, ...]] = []
    fired = torch.zeros(sae.W_dec.shape[0], dtype=torch.int64, device=x.device)
    for part in x.split(batch_tokens):
        interrupt.check()
        step = sae(part, dead)
        fired += step.acts.tokens_per_latent
        l0, error = step.acts.l0_per_token().float(), (part - step.recon).pow(2).sum(1)
        plain, centred = (_products(part - at, step.recon - at) for at in (zero, mean))
        columns.append((l0, error, *plain, *centred))
    l0, error, *products = (torch.cat(column).cpu() for column in zip(*columns, strict=True))
    plain, centred = metrics.Products(*products[:3]), metrics.Products(*products[3:])
    return metrics.Measured(l0, error, plain, centred, fired.cpu())


def _products(
    x: Float[Tensor, "batch d_in"], recon: Float[Tensor, "batch d_in"]
) -> tuple[Tensor, Tensor, Tensor]:
    """The columns of `metrics.Products`."""
    return x.pow(2).sum(1), recon.pow(2).sum(1), (x * recon).sum(1)


@torch.no_grad()
def known_truth(sae: Architecture, target: TargetModel) -> dict[str, float]:
    """True L0 and what of the true features was recovered; nothing where they are unknown."""
    known = {} if target.true_l0 is None else {"true_l0": target.true_l0}
    if target.dictionary is None:
        return known
    return known | recovery(target.dictionary.cpu().numpy(), sae.W_dec.detach().cpu().numpy())


@torch.no_grad()
def cross_entropy(sae: Architecture, stream: Stream, tokens: int) -> dict[str, float]:
    """Cross-entropy in nats per token with the reconstruction in place of the activation."""
    dead = torch.zeros(sae.W_dec.shape[0], dtype=torch.bool, device=sae.W_dec.device)

    def replace(acts: Float[Tensor, "some d_in"]) -> Float[Tensor, "some d_in"]:
        return stream.unscaled(sae(stream.scaled(acts), dead).recon)

    losses = stream.spliced_losses("held_out", stream.held_out_rows(tokens), replace)
    ce, kl = (loss.cpu().double().mean().item() for loss in (losses.ce, losses.kl))
    reference = stream.reference_ce(tokens)
    clean = reference["clean"]
    recovered = {
        "ce_recovered": metrics.ce_recovered(clean, ce, reference["zero"]),
        "ce_recovered_mean": metrics.ce_recovered(clean, ce, reference["mean"]),
    }
    return (
        {"ce": ce, "delta_ce": ce - clean, "kl": kl}
        | {f"ce_{name}": value for name, value in reference.items()}
        | {name: value for name, value in recovered.items() if value is not None}
    )
