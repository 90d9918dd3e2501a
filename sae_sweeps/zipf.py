"""Zipf's law with Mandelbrot's shift, as firing densities by rank."""

import torch
from jaxtyping import Float
from torch import Tensor


def zipf_densities(
    d_sae: int, l0: float | Float[Tensor, ""], exponent: float, shift: float
) -> Float[Tensor, " d_sae"]:
    """min(1, l0 * (rank + shift)^-exponent / sum): expected share of tokens of ranks 1 to d_sae."""
    weight = (torch.arange(1, d_sae + 1, dtype=torch.float64) + shift) ** -exponent
    return (l0 * weight / weight.sum()).clamp(max=1).float()
