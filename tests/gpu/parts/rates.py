"""Rates of the machine: copying, products at three sizes, launches, and what a context takes."""

import time

import torch
from torch import Tensor

from tests.gpu.sizes import Size

from .machine import smi
from .place import Place, main

COPIED = 2**32
"""Bytes that are read, and as many written: many times what a cache holds."""
LAUNCHES = 1_000
TB, TERA = 1e12, 1e12


def measure(here: Place) -> None:
    """What decides first: the context, since there is none yet."""
    with here.cell(what="context"):
        context(here)
    with here.cell(what="copy"):
        copy(here)
    for name, size in here.sizes.items():
        with here.cell(what="product", size=name):
            products(here, name, size)
    with here.cell(what="launches"):
        launches(here)


def context(here: Place) -> None:
    """Bytes that a process takes by using the device, before and after its first product.

    By the driver's tool, for the whole device: nobody else is to use it meanwhile.
    """
    before = mebibytes(smi().get("memory.used"))
    began = time.perf_counter()
    x = torch.ones(64, 64, device=here.device)
    here.settle()
    seconds = time.perf_counter() - began
    first = taken(here)
    for dtype in (torch.float32, torch.bfloat16):
        torch.mm(x.to(dtype), x.to(dtype))
    here.settle()
    found = {"first_use_bytes": first, "after_products_bytes": taken(here), "seconds": seconds}
    here.tell(what="context", before_bytes=before, **found)


def taken(here: Place) -> int | None:
    """Bytes of the device that are in use and no tensor's."""
    if here.device.type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def mebibytes(text: str | None) -> int | None:
    """Bytes, of a text such as "4 MiB"."""
    number = (text or "").partition(" ")[0]
    return int(number) * 2**20 if number.isdecimal() else None


def copy(here: Place) -> None:
    """From one place of the device's memory to another."""
    entries = (2**16 if here.rehearsal else COPIED) // 2
    source = torch.randn(entries, device=here.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    ms = here.milliseconds(lambda: target.copy_(source))
    here.tell(what="copy", ms=ms, tb_per_s=2 * 2 * entries / ms * 1e3 / TB)


def products(here: Place, name: str, size: Size) -> None:
    """Of the encoder's shape; float32 as the evaluation has it, without TF32."""
    left = torch.randn(size.batch, size.d_in, device=here.device)
    right = torch.randn(size.d_sae, size.d_in, device=here.device)
    half, other = left.bfloat16(), right.bfloat16()
    ways = {
        "bfloat16": lambda: half @ other.T,
        "float32 output": lambda: wide(half, other),
        "float32": lambda: left @ right.T,
    }
    for what, way in ways.items():
        ms = here.milliseconds(way)
        flops = 2 * size.batch * size.d_in * size.d_sae
        here.tell(what=what, size=name, ms=ms, tflop_per_s=flops / ms * 1e3 / TERA)


def wide(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of bfloat16 numbers in float32, which CPUs have no operator for."""
    if left.device.type == "cuda":
        return torch.mm(left, right.T, out_dtype=torch.float32)
    return left.float() @ right.float().T


def launches(here: Place) -> None:
    """What the smallest of kernels takes, of the host's time and of the device's."""
    x = torch.zeros(16, device=here.device)
    count = 10 if here.rehearsal else LAUNCHES

    def many() -> None:
        for _ in range(count):
            x.add_(1.0)

    microseconds = {
        "us": 1e3 * here.milliseconds(many) / count,
        "host_us": 1e3 * here.host_milliseconds(many) / count,
    }
    here.tell(what="launches", **microseconds)


if __name__ == "__main__":
    main(measure)
