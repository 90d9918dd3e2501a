"""What a step on fake CUDA tensors asks of a GPU: operators, waits, bytes, products, memory.

Times are an estimate, no measurement: each operator takes as long as its bytes or its products do
at the rates below, which an H200 was said to reach.
"""

import sys
import traceback
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

STREAMED, GATHERED, RANKED = 3.6e12, 2.5e12, 1.8e12
"""Bytes a second: read in order, read row by row, looked at digit by digit."""
PRODUCTS = {torch.bfloat16: 700e12, torch.float16: 700e12, torch.float32: 50e12}
"""Floating-point operations a second of a product of matrices."""
HOST_US = 8.0
"""What the host takes for an operator, Python included."""

COMPUTE_NOTHING = frozenset(
    {
        *(
            "view",
            "_unsafe_view",
            "reshape",
            "_reshape_alias",
            "view_as",
            "expand",
            "t",
            "transpose",
        ),
        *("permute", "slice", "select", "unsqueeze", "squeeze", "detach", "alias", "as_strided"),
        *("split", "split_with_sizes", "unbind", "unfold", "chunk", "diagonal", "lift_fresh"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
        *(
            "device",
            "size",
            "stride",
            "storage_offset",
            "dim",
            "numel",
            "is_contiguous",
            "is_pinned",
        ),
        *("layout", "resolve_conj"),
    }
)
ONLY_WRITE = frozenset(
    {
        *("zero_", "zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "arange"),
        *("fill_", "full", "full_like", "new_full"),
    }
)
COPIES = ("_to_copy", "copy_")
WAITS = {"_local_scalar_dense": "a number", "nonzero": "how many there are"}
"""What the host waits for."""


def size(tensors: Sequence[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(t.nbytes for t in tensors if t.layout == torch.strided)


class Asked(TorchDispatchMode):
    """Within it operators on CUDA tensors are counted."""

    def __init__(self, found: int = 64) -> None:
        """`found` is how many entries an operator finds whose result nobody can know here."""
        super().__init__()
        self.operators = Counter[str]()
        self.us = defaultdict[str, float](float)
        self.waits = list[str]()
        self.in_any_order = set[str]()
        """Where CUDA adds floats in an order that differs from time to time."""
        self.live = self.peak = 0
        self.found = found
        self._storages = set[int]()

    @property
    def gpu_ms(self) -> float:
        """What the device would take."""
        return sum(self.us.values()) / 1e3

    @property
    def ms(self) -> float:
        """The longer of what the device and the host would take."""
        return max(self.gpu_ms, self.operators.total() * HOST_US / 1e3)

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        ins = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        try:
            out = func(*args, **(kwargs or {}))
        except (DataDependentOutputException, DynamicOutputShapeException):
            if ins[0].device.type == "cuda":
                self.waits.append(f"{where()}: {WAITS[name]}")
                self.operators[name] += 1
            return self._made_up(name, ins[0])
        outs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        for made in outs if (kwargs or {}).get("pin_memory") else ():
            made.pinned = True  # pyright: ignore[reportAttributeAccessIssue]
        devices = {t.device.type for t in (*ins, *outs)}
        if "cuda" in devices:
            self._hold(ins, 0)
            self._hold(outs, 1)
            self._count(Call(name, ins, outs, args, kwargs or {}), devices)
        return out

    def _made_up(self, name: str, of: Tensor) -> Any:
        if name == "nonzero":
            return of.new_empty((min(self.found, of.numel()), of.ndim), dtype=torch.int64)
        return 0.0 if of.dtype.is_floating_point else 0

    def _hold(self, tensors: Sequence[Tensor], share: int) -> None:
        """Count storages that are new while they are alive; with share 0 they were there before."""
        for tensor in tensors:
            if tensor.layout != torch.strided or tensor.device.type != "cuda":
                continue
            storage = tensor.untyped_storage()
            key, size = id(storage), share * storage.nbytes()
            if key not in self._storages:
                self._storages.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def _count(self, call: "Call", devices: set[str]) -> None:
        name = call.name
        if name in COMPUTE_NOTHING:
            return
        if len(devices) > 1 and name in COPIES and not any(map(is_pinned, call.ins)):
            self.waits.append(f"{where()}: a copy between host and device")
        self.operators[name] += 1
        floats = any(t.is_floating_point() for t in call.outs or call.ins[:1])
        if floats and adds_in_any_order(call):
            self.in_any_order.add(f"{where()}: {name}")
        cost = COSTS.get(name) or COSTS.get(name.removesuffix("_"), streamed)
        self.us[name] += 1e6 * cost(call)


def is_pinned(tensor: Tensor) -> bool:
    """Whether a device can copy it while the host goes on."""
    return getattr(tensor, "pinned", False)


class Call(NamedTuple):
    """An operator's call."""

    name: str
    ins: list[Tensor]
    outs: list[Tensor]
    args: tuple[Any, ...]
    options: dict[str, Any]


ATOMIC = frozenset(
    {
        *("index_add", "index_reduce", "scatter_add", "put", "cumsum", "histc", "bincount"),
        *("_embedding_bag_dense_backward", "embedding_dense_backward"),
    }
)
"""Operators whose kernels add atomically, or in blocks that end in any order."""


def adds_in_any_order(call: "Call") -> bool:
    """As the documentation of `torch.use_deterministic_algorithms` has it."""
    name = call.name.removesuffix("_")
    if name in ("index_put", "_index_put_impl"):
        return bool(call.options.get("accumulate") or (len(call.args) > 3 and call.args[3]))
    if name == "scatter_reduce":
        return call.args[4] in ("sum", "mean", "prod")
    return name in ATOMIC


# --- What a call costs, in seconds ---------------------------------------------------------


def streamed(call: Call) -> float:
    """Everything is read and written once."""
    read = 0 if call.name in ONLY_WRITE else size(call.ins)
    return (read + size(call.outs)) / STREAMED


def in_place(call: Call) -> float:
    """Likewise, of lists whose first is written and nothing returned."""
    return (size(call.ins) + size(call.args[0])) / STREAMED


def product(call: Call) -> float:
    left, right = [t for t in call.args if isinstance(t, Tensor)][-2:]
    columns = right.shape[-1] if right.ndim > 1 else 0
    flops = 2 * left.numel() * columns
    return max(flops / PRODUCTS.get(left.dtype, 30e12), streamed(call)) + 2e-6


def ranked(call: Call) -> float:
    """Read once for each byte of a number, and once to list what was found."""
    values = call.ins[0]
    return (values.element_size() + 1) * values.nbytes / RANKED + 30e-6


def ordered(call: Call) -> float:
    values = call.ins[0]
    passes = values.element_size() if values.shape[-1] > 4096 else 1
    return 2 * passes * values.numel() * (values.element_size() + 8) / (STREAMED / 2) + 10e-6


def bags(call: Call) -> float:
    rows, indices = call.ins[:2]
    read = indices.numel() * rows.shape[1] * rows.element_size()
    return (read + call.outs[0].nbytes) / GATHERED


def dots(call: Call) -> float:
    _, latents, left, _ = call.ins
    return 2 * latents.numel() * left.shape[1] * left.element_size() / GATHERED + 20e-6


def gathered(call: Call) -> float:
    return (2 * size(call.outs) + size(call.ins[1:])) / GATHERED


def scattered(call: Call) -> float:
    copied = 0 if call.name.endswith("_") else 2 * call.ins[0].nbytes
    return (2 * size(call.ins[1:]) + copied) / GATHERED + 3e-6


def adam(call: Call) -> float:
    """Weights, gradients and two moments are read, and all written; gradients only if scaled."""
    written = 4 if call.options.get("grad_scale") is not None else 3
    return sum(t.nbytes for t in call.ins if t.numel() > 1) * (4 + written) / 4 / STREAMED


GATHER = ("index_select", "gather", "take", "index", "embedding")
SCATTER = ("index_add", "index_put", "index_copy", "index_fill", "scatter", "scatter_reduce")
COSTS: dict[str, Callable[[Call], float]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "mv", "addmv"), product),
    **dict.fromkeys(("topk",), ranked),
    **dict.fromkeys(("sort", "argsort"), ordered),
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), bags),
    **dict.fromkeys(("sampled_products",), dots),
    **dict.fromkeys(GATHER, gathered),
    **dict.fromkeys(SCATTER, scattered),
    **dict.fromkeys(("_foreach_mul", "_foreach_add", "_foreach_div"), in_place),
    **dict.fromkeys(("_fused_adam",), adam),
}


def where() -> str:
    """The line of the package that is running."""
    frames = traceback.extract_stack(sys._getframe())  # pyright: ignore[reportPrivateUsage]
    ours = [frame for frame in frames if "/sae_sweeps/" in frame.filename]
    return f"{ours[-1].filename.rpartition('/sae_sweeps/')[2]}:{ours[-1].lineno}" if ours else "?"
