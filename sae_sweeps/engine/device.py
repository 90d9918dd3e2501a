"""How a device wants things computed: in one place, where tests can have a CPU compute likewise."""

import torch


def looks_whole(device: torch.device) -> bool:
    """Whether a matrix is best looked at as a whole, by operators whose shapes are known before.

    So on accelerators. On CPUs what is in a cache is faster, and nobody waits for a number.
    """
    return device.type != "cpu"


def has_fused_kernels(device: torch.device) -> bool:
    """Whether PyTorch has kernels for it that spare passes over the weights: CUDA's."""
    return device.type == "cuda"
