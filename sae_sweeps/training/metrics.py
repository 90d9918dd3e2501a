"""Every figure that runs are compared by, defined once, as pure functions.

Sums are taken over all tokens before dividing; ratios of batches are never averaged.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.engine.zipf import zipf_densities

RARE = ("1e-4", "1e-5", "1e-6")
"""densities below which the fraction of latents is reported"""

HISTOGRAM_EDGES = tuple(-6 + 0.25 * step for step in range(25))
"""log10 density, from 1e-6 to 1"""

L0_BINS = 40
"""bins of tokens by their L0, at most"""

MIN_ABLATION_COST = 0.1
"""nats; where removing the activation costs less, "recovered" would divide by noise"""

UNDERUSED = 0.1
"""share of the density due to a latent's rank, below which it is underused"""
ZIPF_EXPONENT, ZIPF_SHIFT = 1.0, 0.0
"""of the law that says which density is due: plain Zipf"""

MIN_CORRELATION = 1e-3
"""between x and recon, over all tokens; below, their ratio of lengths would divide by noise"""


@dataclass(frozen=True)
class Products:
    """Inner products of each token and its reconstruction."""

    x: Float[Tensor, " tokens"]
    """||x||^2"""
    recon: Float[Tensor, " tokens"]
    """||recon||^2"""
    both: Float[Tensor, " tokens"]
    """<x, recon>"""


@dataclass(frozen=True)
class Measured:
    """What evaluation needs of each token and latent; on the CPU."""

    l0: Float[Tensor, " tokens"]
    """active latents"""
    error: Float[Tensor, " tokens"]
    """||x - recon||^2"""
    plain: Products
    """of activations as the target model has them, but for one factor"""
    centred: Products
    """with the mean of x over all tokens measured taken off both"""
    fired: Int[Tensor, " d_sae"]
    """tokens on which each latent was active"""


def fvu(error: Float[Tensor, " tokens"], spread: Float[Tensor, " tokens"]) -> float:
    """Fraction of variance unexplained: sum ||x - recon||^2 / sum ||x - mean||^2."""
    return (error.double().sum() / spread.double().sum()).item()


def cosine(products: Products) -> float:
    """Mean cosine between x and recon; 0 where one of them is 0."""
    lengths = (products.x.double() * products.recon.double()).sqrt()
    return (products.both.double() / lengths.clamp(min=1e-30)).mean().item()


def gamma(products: Products) -> float | None:
    """Relative reconstruction bias E||recon||^2 / E<x, recon> (arXiv 2404.16014, Eq. 10).

    Below 1 the reconstruction is too short: its best gain is 1 / gamma. None where x and recon
    hardly correlate, as for a constant recon.
    """
    x, recon, both = (
        column.double().sum().item() for column in (products.x, products.recon, products.both)
    )
    return recon / both if both > MIN_CORRELATION * (x * recon) ** 0.5 else None


def dead_frac(fired: Int[Tensor, " d_sae"]) -> float:
    """Fraction of latents active on no token; to be read with the number of tokens."""
    return (fired == 0).double().mean().item()


def underused_frac(density: Float[Tensor, " d_sae"], l0: float) -> float:
    """Fraction of latents with less than a tenth of the density that Zipf's law gives their rank.

    Ranks go by density; the law's densities sum to `l0`, unless one would exceed 1. Dead latents
    are always among them. Our definition.
    """
    due = zipf_densities(len(density), l0, ZIPF_EXPONENT, ZIPF_SHIFT)
    ranked = density.sort(descending=True).values
    return ((ranked < UNDERUSED * due) | (ranked == 0)).double().mean().item()


def summary(measured: Measured, d_in: int, scale: float) -> dict[str, float]:
    """The scalars of `result.json`; `mse` per dimension, in unscaled units."""
    tokens = len(measured.l0)
    density = measured.fired.double() / tokens
    l0 = measured.l0.double()
    gammas = {"gamma": gamma(measured.plain), "gamma_centred": gamma(measured.centred)}
    low, median, high = np.quantile(l0.numpy(), (0.05, 0.5, 0.95)).tolist()
    figures = {
        "l0": l0.mean().item(),
        "l0_p5": low,
        "l0_median": median,
        "l0_p95": high,
        "l0_max": l0.max().item(),
        "fvu": fvu(measured.error, measured.centred.x),
        "mse": measured.error.double().mean().item() / d_in / scale**2,
        "cosine": cosine(measured.plain),
        "dead_frac": dead_frac(measured.fired),
        "underused_frac": underused_frac(density, l0.mean().item()),
    }
    rare = {f"below_{rare}": (density < float(rare)).double().mean().item() for rare in RARE}
    return figures | rare | {name: value for name, value in gammas.items() if value is not None}


def fvu_by_l0_decile(measured: Measured) -> list[dict[str, float]]:
    """FVU and mean L0 of ten equal groups of tokens, from the lowest L0 to the highest.

    Shows whether tokens that are given more latents need them: the point of adaptive allocation.
    """
    order = measured.l0.argsort(stable=True)
    return [
        {
            "l0": measured.l0[group].double().mean().item(),
            "fvu": fvu(measured.error[group], measured.centred.x[group]),
        }
        for group in order.tensor_split(10)
        if len(group)
    ]


def density_histogram(measured: Measured) -> dict[str, list[float]]:
    """Latents by log10 firing density; the first bin also holds those that never fired."""
    density = (measured.fired.double() / len(measured.l0)).clamp(min=10 ** HISTOGRAM_EDGES[0])
    edges = torch.tensor(HISTOGRAM_EDGES, dtype=torch.float64, device=density.device)
    bins = torch.bucketize(density.log10(), edges, right=True) - 1
    counts = torch.bincount(bins.clamp(0, len(edges) - 2), minlength=len(edges) - 1)
    return {"log10_edges": list(HISTOGRAM_EDGES), "counts": counts.tolist()}


def l0_histogram(measured: Measured) -> dict[str, list[int]]:
    """Tokens by their active latents: `counts[i]` have from `edges[i]` to below `edges[i + 1]`."""
    l0 = measured.l0.long()
    width = int(l0.max()) // L0_BINS + 1
    counts = torch.bincount(l0 // width, minlength=1)
    return {"edges": [width * i for i in range(len(counts) + 1)], "counts": counts.tolist()}


def ce_recovered(clean: float, spliced: float, ablated: float) -> float | None:
    """(ablated - spliced) / (ablated - clean); None where ablation costs less than 0.1 nat."""
    cost = ablated - clean
    return (ablated - spliced) / cost if cost >= MIN_ABLATION_COST else None
