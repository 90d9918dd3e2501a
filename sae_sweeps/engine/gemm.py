"""Large dense products: which library computes them, and into which memory.

On CPUs PyTorch multiplies float32 matrices with MKL, which on AMD's reaches less than half of what
oneDNN does. oneDNN's product is an internal operator of PyTorch: it is used where it is there and
right, and never needed.
"""

import ctypes
import weakref
from collections import deque
from collections.abc import MutableMapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

CHUNK = 2**22
"""Entries computed at a time by oneDNN, so that they are in a cache when they are copied."""
LENT_FROM = 2**25
"""Bytes; smaller blocks the C library keeps for the next step, see `keep_memory`."""
KEPT = 2**30
"""Bytes free at the end of its heap that the C library may keep."""


def product(
    left: Float[Tensor, "n d"], right: Float[Tensor, "m d"], bias: Float[Tensor, "_ _"]
) -> Float[Tensor, "n m"]:
    """left @ right.T + bias, without a gradient; in bfloat16 under `torch.autocast`.

    oneDNN is faster by a third with the longer matrix on the left. In bfloat16 a bias of columns is
    added before the product is rounded.
    """
    if left.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        of_columns = len(bias) == 1
        return F.linear(left, right, bias[0]) if of_columns else F.linear(left, right).add_(bias)
    size = len(left) * len(right)
    if size <= CHUNK and left.dtype == torch.float32 and onednn():
        return _onednn(left, right).add_(bias)
    out = lent(len(left), len(right), left.dtype)
    bias = bias.expand(out.shape)
    if left.dtype != torch.float32 or not onednn():
        return torch.addmm(bias, left, right.T, out=out)
    chunks = -(-size // CHUNK)
    for part, parts_bias, into in zip(
        left.tensor_split(chunks), bias.tensor_split(chunks), out.tensor_split(chunks), strict=True
    ):
        torch.add(_onednn(part, right), parts_bias, out=into)
    return out


def matmul(a: Float[Tensor, "n d"], b: Float[Tensor, "d m"]) -> Float[Tensor, "n m"]:
    """a @ b, without a gradient."""
    plain = a.device.type != "cpu" or torch.is_autocast_enabled("cpu")
    if plain or a.dtype != torch.float32 or not onednn():
        return a @ b
    return _onednn(a, b.T)


def backend(device: torch.device) -> str:
    """The library that multiplies float32 matrices, for logs."""
    if device.type != "cpu":
        return device.type
    return "oneDNN" if onednn() else "MKL" if torch.backends.mkl.is_available() else "PyTorch"


def onednn() -> bool:
    """Whether oneDNN's product can be used, and is not off (`torch.backends.mkldnn.flags`)."""
    return torch.backends.mkldnn.enabled and _onednn_works()


@cache
def _onednn_works() -> bool:
    """Try it on a small product with rows and columns that are no multiple of anything."""
    generator = torch.Generator().manual_seed(0)
    x, W = (torch.randn(n, 19, generator=generator) for n in (37, 53))
    try:
        return torch.allclose(_onednn(x, W), x @ W.T, rtol=1e-4, atol=1e-5)
    except (AttributeError, RuntimeError, TypeError):  # not in this build, or called otherwise
        return False


_PRODUCTS = (torch.ops.aten.addmm.default, torch.ops.aten.mm.default)


class ByOneDNN(TorchDispatchMode):
    """Inside it, products of float32 matrices on CPUs that PyTorch is asked for go to oneDNN.

    For models whose modules are not ours. Gradients, made outside of it, are PyTorch's.
    """

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        if func in _PRODUCTS and not kwargs:
            *bias, left, right = args
            row = not bias or bias[0].ndim == 1
            if row and left.device.type == "cpu" and left.dtype == torch.float32:
                return _onednn(left, right.T, *bias)
        return func(*args, **(kwargs or {}))


def faster(device: torch.device) -> AbstractContextManager[Any]:
    """Within it, whoever multiplies matrices does so with the fastest library for a device."""
    return ByOneDNN() if device.type == "cpu" and onednn() else nullcontext()


_rounded: MutableMapping[Tensor, tuple[int, Tensor]] = WeakIdKeyDictionary()
"""Of parameters: the version of their values, and these in bfloat16."""


def rounded(weights: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """The weights as products read them: in bfloat16 under `torch.autocast`, detached.

    A parameter's are kept until its values change: PyTorch would round them for each product.
    """
    if not torch.is_autocast_enabled(weights.device.type):
        return weights.detach()
    found = _rounded.get(weights)
    if found is not None and found[0] == weights._version:
        return found[1]
    del found
    _rounded.pop(weights, None)  # so that there are never two
    kept = weights.detach().to(torch.bfloat16)
    if isinstance(weights, nn.Parameter):
        _rounded[weights] = weights._version, kept
    return kept


def _onednn(
    x: Float[Tensor, "n d"], W: Float[Tensor, "m d"], bias: Float[Tensor, " m"] | None = None
) -> Float[Tensor, "n m"]:
    return torch.ops.mkldnn._linear_pointwise(x, W, bias, "none", [], "")


_free = deque[np.ndarray]()
"""Blocks of memory that nobody uses; as many as there were large matrices at a time."""


def lent(rows: int, columns: int, dtype: torch.dtype) -> Float[Tensor, "rows columns"]:
    """An uninitialised matrix on the CPU, whose memory is used again once it is gone.

    The C library gives large blocks back to the system; to be given 100 MB of new pages at each
    step costs a fifth of it. Memory is lent again only when no tensor looks at it any more, as a
    view or for a backward pass.
    """
    size = rows * columns * dtype.itemsize
    if size < LENT_FROM:
        return torch.empty(rows, columns, dtype=dtype)
    try:
        block = _free.popleft()
    except IndexError:
        block = np.empty(0, np.uint8)
    if len(block) < size:
        block = np.empty(size, np.uint8)
    # The tensor's storage keeps this array alive, which is what tells that it is in use.
    held = block[:size]
    weakref.finalize(held, _free.append, block).atexit = False
    return torch.from_numpy(held).view(dtype).view(rows, columns)


def keep_memory() -> None:
    """Have the C library keep what is freed for the next step, where it is glibc.

    By default it gives memory back to the system when much of it is free, and threads have heaps
    of their own, given back sooner: to be given pages anew costs a fifteenth of a step.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8
    set_option(m_trim_threshold, KEPT)
    set_option(m_mmap_threshold, LENT_FROM)
    set_option(m_arena_max, 1)
