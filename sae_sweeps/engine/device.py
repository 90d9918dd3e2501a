"""How a device wants things computed: in one place, where tests can have a CPU compute likewise."""

import os

import torch

SETTINGS = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",  # blocks of many sizes come and go
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # the same product in the same order each time
}
"""What CUDA is to be started with, unless the user says otherwise."""


def settle(deterministic: bool) -> None:
    """Set what has to be set before a device is first used.

    Args:
        deterministic: have PyTorch take the deterministic way wherever an operator has one, and
            refuse the others by RuntimeError.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    torch.use_deterministic_algorithms(deterministic)
    # Nothing here reads memory that it has not written, which else would be filled each time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore


def looks_whole(device: torch.device) -> bool:
    """Whether a matrix is best looked at as a whole, by operators whose shapes are known before.

    So on accelerators. On CPUs what is in a cache is faster, and nobody waits for a number.
    """
    return device.type != "cpu"


def has_fused_kernels(device: torch.device) -> bool:
    """Whether PyTorch has kernels for it that spare passes over the weights: CUDA's."""
    return device.type == "cuda"
