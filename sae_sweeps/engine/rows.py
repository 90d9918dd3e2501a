"""Some rows of a tensor, each at most once, with a gradient that adds nothing up."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor


class _Rows(torch.autograd.Function):
    """`index_select` along the first dimension."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = rows.shape
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places,), (grad,) = ctx.saved_tensors, grads
        return grad.new_zeros(ctx.shape).index_copy_(0, places, grad), None


def distinct_rows(
    rows: Float[Tensor, "rows ..."], places: Int[Tensor, " n"]
) -> Float[Tensor, "n ..."]:
    """The rows at `places`, all of them different.

    PyTorch's own gradient adds, on CUDA in the order in which threads happen to come.
    """
    return _Rows.apply(rows, places)
