"""GPUs by name: what their makers promise, and how much of it was reached."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """Rates of a GPU's data sheet, without sparsity."""

    title: str
    bfloat16: float
    """TFLOP/s of products, summed in float32"""
    float32: float
    """TFLOP/s"""
    bandwidth: float
    """TB/s of its memory"""
    memory: int
    """GB"""

    @property
    def products(self) -> float:
        """FLOP/s of large products in bfloat16 that can be expected."""
        return REACHED_PRODUCTS * self.bfloat16 * 1e12

    @property
    def exact_products(self) -> float:
        """FLOP/s of large products in float32 that can be expected."""
        return REACHED_PRODUCTS * self.float32 * 1e12

    @property
    def streamed(self) -> float:
        """Bytes a second, read in order, that can be expected."""
        return REACHED_BANDWIDTH * self.bandwidth * 1e12


REACHED_PRODUCTS, REACHED_BANDWIDTH = 0.71, 0.75
"""What an H200 was said to reach of its data sheet; others are taken to reach as much."""
GPUS = {
    "b200": Gpu("B200", 2250, 75, 8.0, 180),
    "h200": Gpu("H200", 989, 67, 4.8, 141),
    "h100": Gpu("H100", 989, 67, 3.35, 80),
    "gh200": Gpu("GH200", 989, 67, 4.0, 96),
    "a100": Gpu("A100", 312, 19.5, 2.04, 80),
    "a40": Gpu("A40", 150, 37.4, 0.696, 48),
    "l40s": Gpu("L40S", 362, 91.6, 0.864, 48),
    "l40": Gpu("L40", 181, 90.5, 0.864, 48),
    "a6000": Gpu("RTX A6000", 155, 38.7, 0.768, 48),
    "rtx4090": Gpu("GeForce RTX 4090", 165, 82.6, 1.01, 24),
    "rtx3090": Gpu("GeForce RTX 3090", 71, 35.6, 0.936, 24),
    "a10": Gpu("A10", 125, 31.2, 0.6, 24),
    "l4": Gpu("L4", 121, 30.3, 0.3, 24),
}
"""By the names that `--gpu` takes."""
USUAL = "h100"
"""Of which times are told where nobody names one."""


def named(text: str) -> str | None:
    """Find the GPU that a text means, as `nvidia-h100-80gb`, `gpu:a100:1` or `rtx_4090`."""
    plain = re.sub(r"[ _-]+", " ", text.lower())
    for name in GPUS:
        words = name.replace("rtx", "(rtx ?)?")
        if re.search(rf"(?<![a-z0-9]){words}(?![a-z0-9])", plain):
            return name
    return None
