"""PyTorch's own operators that a step is made of: what they take, since that was only simulated.

Pairs are drawn evenly over the latents, or so that one latent is in every second token.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from sae_sweeps.engine import sparse
from sae_sweeps.engine.acts import SparseActs, decode
from sae_sweeps.engine.sparse import Pairs
from sae_sweeps.optimizer.adam import Adam
from sae_sweeps.training.trainer import projected
from tests.gpu.sizes import Size

from .ours import main
from .place import Place

Work = Callable[[], object]


def measure(here: Place) -> None:
    """Each group at each size; the smallest size first."""
    for name, size in here.sizes.items():
        for group in (selection, sums_and_dots, weights):
            with here.cell(operator=group.__name__, size=name):
                for operator, work in group(here, size):
                    about = {"operator": operator, "size": name}
                    with here.trial(**about):
                        here.tell(**about, ms=here.milliseconds(work))


def selection(here: Place, size: Size) -> Iterator[tuple[str, Work]]:
    """The largest of each token, and of the whole batch; of bfloat16 and float32."""
    budget = size.batch * size.k
    values = torch.randn(size.batch, size.d_sae, device=here.device)
    for dtype in (torch.bfloat16, torch.float32):
        own, kind = values.to(dtype), str(dtype).removeprefix("torch.")
        yield f"topk, rows, {kind}", lambda own=own: own.topk(size.k, dim=1, sorted=False)
        yield f"topk, flat, {kind}", lambda own=own: own.flatten().topk(budget, sorted=False)
        yield f"above a threshold, counted, {kind}", lambda own=own: (own > 3).count_nonzero()
    latents = torch.randint(size.d_sae, (size.batch, size.k), device=here.device)
    yield "sort, a token's latents", lambda: latents.sort(dim=1)
    flat = latents.flatten().to(torch.int32)
    yield "sort, stable, pairs by latent", lambda: flat.sort(stable=True)
    yield "searchsorted, latents' starts", starts_of(flat.sort().values, size.d_sae)


def starts_of(ordered: Tensor, d_sae: int) -> Work:
    """Where each latent's pairs begin."""
    borders = torch.arange(d_sae + 1, dtype=ordered.dtype, device=ordered.device)
    return lambda: torch.searchsorted(ordered, borders)


def pairs_of(here: Place, size: Size, skewed: bool) -> Pairs:
    """As many latents of each token as are wanted; skewed, the first in every second token."""
    scores = torch.rand(size.batch, size.d_sae, device=here.device)
    if skewed:
        scores[::2, 0], scores[1::2, 0] = 2.0, -1.0
    latents = scores.topk(size.k, dim=1).indices
    tokens = torch.arange(size.batch, device=here.device)[:, None]
    return Pairs((size.batch, size.d_sae), (latents + tokens * size.d_sae).flatten().sort().values)


def sums_and_dots(here: Place, size: Size) -> Iterator[tuple[str, Work]]:
    """Products at pairs; what the pairs know of themselves is known before."""
    W_dec = torch.randn(size.d_sae, size.d_in, device=here.device, requires_grad=True)
    x = torch.randn(size.batch, size.d_in, device=here.device)
    for kind, skewed in (("even", False), ("one latent on half of all tokens", True)):
        for operator, work in at_pairs(pairs_of(here, size, skewed), W_dec, x):
            yield f"{operator}, {kind}", work


def at_pairs(pairs: Pairs, W_dec: Tensor, x: Tensor) -> Iterator[tuple[str, Work]]:
    """The products of a step at these pairs."""
    values, rows = torch.rand(len(pairs.flat), device=x.device), W_dec.detach()
    order, _, starts = pairs.by_latent
    ordered = values.index_select(0, order)
    yield "embedding_bag by token", lambda: sparse.times(pairs, values, rows)
    yield "embedding_bag by latent", lambda: sparse.transposed_times(pairs, values, x)
    yield "decode and its gradients", lambda: decoded(pairs, values, W_dec, x)
    yield "sampled_addmm", lambda: sparse.products(pairs, x, rows)
    sums = partial(torch.segment_reduce, ordered, "sum", offsets=starts, unsafe=True)
    yield "segment_reduce", sums


def decoded(pairs: Pairs, values: Tensor, W_dec: Tensor, grad: Tensor) -> None:
    """Activations decoded, forward and backward."""
    leaf = values.detach().requires_grad_()
    decode(SparseActs(pairs, leaf), W_dec).backward(grad)
    W_dec.grad = None


def weights(here: Place, size: Size) -> Iterator[tuple[str, Work]]:
    """What is done to the weights once their gradients are there."""

    def drawn() -> Tensor:
        return torch.randn(size.d_sae, size.d_in, device=here.device)

    grad, (first, second) = drawn(), (torch.nn.Parameter(drawn()) for _ in range(2))
    first.grad, second.grad = grad, drawn()
    adam = Adam([first, second], [1.0, 1.0], lr=1e-4, beta1=0.9, beta2=0.999)
    yield "gradients' norm", lambda: adam.clip(1.0)
    yield "gradients' norm and Adam, fused", lambda: clipped_update(adam)
    yield "weight norm's backward, of the decoder", lambda: projected(grad, first)
    yield "rows to unit norm, of the decoder", lambda: unit(first)
    yield "rounded to bfloat16, of the encoder", lambda: first.detach().to(torch.bfloat16)


def clipped_update(adam: Adam) -> None:
    """A step, whose gradients are divided as they are read."""
    adam.clip(1.0)
    adam.update(1e-4)


@torch.no_grad()
def unit(rows: Tensor) -> None:
    """As a step ends."""
    rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)


if __name__ == "__main__":
    main(measure)
