"""Large products: every library's are right, whatever shape; memory is lent to one at a time."""

import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from sae_sweeps.engine import gemm
from sae_sweeps.engine.acts import Selection
from sae_sweeps.engine.affinities import Affinities
from sae_sweeps.engine.pre_acts import PreActs, encode
from sae_sweeps.engine.sparse import Pairs, products, times, transposed_times
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from tests.support.places import CONF
from tests.support.small import small_run, train

torch.set_num_threads(1)

CPU = torch.device("cpu")
SHAPES = [(1, 1, 1), (1, 19, 53), (37, 1, 5), (37, 19, 1), (3, 5, 7), (33, 130, 257), (129, 64, 32)]
"""(n, d, m) of x @ W.T, W of m rows"""
every_shape = pytest.mark.parametrize(("n", "d", "m"), SHAPES)


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(1000 * seed + sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def close(found: Tensor, wanted: Tensor) -> None:
    """To the precision of `found`; `wanted` is exact."""
    rtol, atol = (1e-12, 1e-12) if found.dtype == torch.float64 else (1e-5, 1e-4)
    torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


# ---------------------------------------------------------------- libraries


def right(x: Tensor, W: Tensor) -> Tensor:
    return x @ W.T


def wrong(x: Tensor, W: Tensor) -> Tensor:
    return x @ W.T * 1.01


def gone(*_: Tensor) -> Tensor:
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def unlike(*_: Tensor) -> Tensor:
    raise RuntimeError("mkldnn::_linear_pointwise() expected at most 5 arguments")


LIBRARIES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor] | None, bool]] = {
    "as it is": (None, True),
    "right": (right, True),
    "off": (right, False),
    "wrong": (wrong, True),
    "gone": (gone, True),
    "unlike": (unlike, True),
}
"""What stands for oneDNN's operator, and whether oneDNN is on"""


@pytest.fixture(params=LIBRARIES)
def library(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[tuple[int, ...]]]:
    """One of these in oneDNN's place, anew put to the test; the shapes it is asked for later."""
    asked = list[tuple[int, ...]]()
    stand_in, enabled = LIBRARIES[request.param]
    operator = stand_in or vars(gemm)["_onednn"]

    def watched(x: Tensor, W: Tensor) -> Tensor:
        asked.append(tuple(x.shape))
        return operator(x, W)

    monkeypatch.setattr("sae_sweeps.engine.gemm._onednn", watched)
    monkeypatch.setattr(
        "sae_sweeps.engine.gemm._onednn_works", cache(vars(gemm)["_onednn_works"].__wrapped__)
    )
    monkeypatch.setattr("torch.backends.mkldnn.enabled", enabled)
    gemm.onednn()
    asked.clear()
    return request.param, asked


Library = tuple[str, list[tuple[int, ...]]]


def bias_of(rows: int, columns: int, along: str, **how: Any) -> Tensor:
    """One number for each row of a product, or for each column."""
    shape = (rows, 1) if along == "rows" else (1, columns)
    return drawn(*shape, seed=1, **how)


along_either = pytest.mark.parametrize("along", ["rows", "columns"])


@every_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@along_either
def test_a_product_is_right_with_every_library(
    library: Library, n: int, d: int, m: int, dtype: torch.dtype, along: str
) -> None:
    x, W, bias = drawn(n, d, dtype=dtype), drawn(m, d, dtype=dtype), bias_of(n, m, along)
    found = gemm.product(x, W, bias.to(dtype))
    assert found.dtype == dtype
    close(found, x.double() @ W.double().T + bias.double())
    assert found.is_contiguous()
    # Either matrix may lie by columns, or be a part of something larger.
    part, lying = drawn(2 * n, d, dtype=dtype)[::2], W.T.contiguous().T
    wanted = part.double() @ W.double().T + bias.double()
    close(gemm.product(part, lying, bias.to(dtype)), wanted)
    close(gemm.product(lying, part, bias.T.to(dtype)), wanted.T)
    name, asked = library
    assert not asked or (name in ("as it is", "right") and dtype == torch.float32)
    assert asked or name != "right" or dtype == torch.float64


@every_shape
@pytest.mark.parametrize(("left", "right"), list(product([False, True], repeat=2)))
def test_matrices_are_multiplied_however_they_lie_in_memory(
    library: Library, n: int, d: int, m: int, left: bool, right: bool
) -> None:
    a, b = drawn(n, d), drawn(d, m, seed=1)
    wanted = a.double() @ b.double()
    found = gemm.matmul(a.T.contiguous().T if left else a, b.T.contiguous().T if right else b)
    close(found, wanted)
    assert bool(library[1]) <= (library[0] in ("as it is", "right"))
    close(gemm.matmul(a.double(), b.double()), wanted)


def test_the_log_says_which_library_multiplies(library: Library) -> None:
    name, _ = library
    other = "MKL" if torch.backends.mkl.is_available() else "PyTorch"
    if name != "as it is":  # whether this build has it is not ours to say
        assert gemm.onednn() == (name == "right")
        assert gemm.backend(CPU) == ("oneDNN" if name == "right" else other)
    assert gemm.backend(torch.device("cuda")) == "cuda"


@pytest.mark.usefixtures("library")
def test_every_product_of_the_engine_is_right_with_every_library() -> None:
    """The dense forms, whose operands are transposed, against exact ones."""
    values, W_dec, x = drawn(23, 31), drawn(31, 9, seed=1), drawn(23, 9, seed=2)
    close(times(None, values, W_dec), values.double() @ W_dec.double())
    close(transposed_times(None, values, x), values.double().T @ x.double())
    close(products(None, x, W_dec), x.double() @ W_dec.double().T)


@along_either
@pytest.mark.parametrize("chunk", [4096, 10**4, 65 * 300 + 1, 10**9])
def test_chunks_change_no_bit(along: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, W, bias = drawn(300, 48), drawn(260, 48), bias_of(300, 260, along)
    whole = gemm.product(x, W, bias)
    monkeypatch.setattr("sae_sweeps.engine.gemm.CHUNK", chunk)
    assert torch.equal(gemm.product(x, W, bias), whole)


def test_chunks_are_as_large_as_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int]()

    def watched(x: Tensor, W: Tensor) -> Tensor:
        asked.append(len(x) * len(W))
        return right(x, W)

    monkeypatch.setattr("sae_sweeps.engine.gemm._onednn", watched)
    monkeypatch.setattr("sae_sweeps.engine.gemm.onednn", lambda: True)
    monkeypatch.setattr("sae_sweeps.engine.gemm.CHUNK", 1000)
    gemm.product(drawn(101, 3), drawn(50, 3), drawn(1, 50))
    assert sum(asked) == 101 * 50 and len(asked) == 6 and max(asked) <= 1000


# ---------------------------------------------------------------- memory


@pytest.fixture
def blocks(monkeypatch: pytest.MonkeyPatch) -> deque[Any]:
    """The free blocks, none at first; even small ones are lent."""
    free = deque[Any]()
    monkeypatch.setattr("sae_sweeps.engine.gemm._free", free)
    monkeypatch.setattr("sae_sweeps.engine.gemm.LENT_FROM", 64)
    return free


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_memory_is_lent_again_once_it_is_gone(dtype: torch.dtype, blocks: deque[Any]) -> None:
    first = gemm.lent(5, 40, dtype)
    assert first.shape == (5, 40) and first.dtype == dtype and first.is_contiguous()
    address = first.data_ptr()
    second = gemm.lent(5, 40, dtype)
    assert second.data_ptr() != address and not blocks
    del first
    assert len(blocks) == 1
    third = gemm.lent(3, 40, dtype)  # a smaller one has room there too
    assert third.data_ptr() == address and not blocks
    del third
    fourth = gemm.lent(6, 40, dtype)  # a larger one has not
    assert fourth.shape == (6, 40) and fourth.fill_(1.0).sum() == 240
    del second, fourth
    assert len(blocks) == 2


def summed(weights: Tensor, matrix: Tensor) -> Tensor:
    """Its gradient needs `matrix`, which the graph keeps."""
    return (weights * matrix).sum()


HOLDERS: dict[str, Callable[[Tensor], object]] = {
    "itself": lambda t: t,
    "view": lambda t: t.view(-1)[3:],
    "transposed": lambda t: t.T[1:],
    "detached": lambda t: t.detach(),
    "split": lambda t: t.split(1)[-1],  # pyright: ignore
    "numpy": lambda t: t.numpy()[1:],  # pyright: ignore
    "graph": lambda t: summed(nn.Parameter(torch.ones_like(t)), t),
    "function": lambda t: Held.apply(nn.Parameter(torch.ones(())), t),  # pyright: ignore
}


class Held(torch.autograd.Function):
    """Keeps a matrix in its context without any saved tensor, as the engine's functions do."""

    @staticmethod
    def forward(ctx: Any, one: Tensor, matrix: Tensor) -> Tensor:
        ctx.matrix = matrix
        return one * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.matrix.sum(), None


@pytest.mark.parametrize("holder", HOLDERS)
def test_memory_is_not_lent_while_anything_looks_at_it(holder: str, blocks: deque[Any]) -> None:
    matrix = gemm.lent(4, 30, torch.float32)
    address = matrix.data_ptr()
    held = HOLDERS[holder](matrix.fill_(7.0))
    del matrix
    assert not blocks
    others = [gemm.lent(4, 30, torch.float32).fill_(-1.0) for _ in range(3)]
    assert address not in [other.data_ptr() for other in others]
    if holder == "graph" and isinstance(held, Tensor):
        assert held.item() == 7 * 120
    held = None
    assert held is None and len(blocks) == 1
    assert gemm.lent(4, 30, torch.float32).data_ptr() == address


def test_a_graph_lets_go_of_memory_after_its_backward_pass(blocks: deque[Any]) -> None:
    weights, matrix = nn.Parameter(torch.ones(4, 30)), gemm.lent(4, 30, torch.float32)
    loss = (weights * matrix.fill_(3.0)).sum()
    del matrix
    assert not blocks
    loss.backward()
    assert weights.grad is not None and weights.grad.eq(3.0).all()
    assert len(blocks) == 1 and loss.requires_grad


@given(
    st.lists(
        st.tuples(
            st.booleans(), st.integers(1, 6), st.sampled_from(sorted(HOLDERS)), st.integers(0, 9)
        ),
        max_size=25,
    )
)
def test_no_two_matrices_in_use_share_memory(
    history: list[tuple[bool, int, str, int]],
) -> None:
    """Matrices come and go in any order, some kept by a part of theirs only."""
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("sae_sweeps.engine.gemm._free", deque())
        patch.setattr("sae_sweeps.engine.gemm.LENT_FROM", 64)
        used: list[tuple[object, int, int]] = []
        for drop, rows, holder, index in history:
            if drop and used:
                used.pop(index % len(used))
                continue
            matrix = gemm.lent(rows, 20, torch.float32)
            begin, end = matrix.data_ptr(), matrix.data_ptr() + 4 * matrix.numel()
            assert all(end <= other or begin >= theirs for _, other, theirs in used)
            used.append((HOLDERS[holder](matrix.fill_(1.0)), begin, end))
            del matrix


def test_small_matrices_are_plain_tensors_and_large_ones_are_lent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = deque[Any]()
    monkeypatch.setattr("sae_sweeps.engine.gemm._free", free)
    columns = gemm.LENT_FROM // 4
    gemm.lent(1, columns - 1, torch.float32)
    assert not free
    address = gemm.lent(1, columns, torch.float32).data_ptr()
    assert len(free) == 1
    assert gemm.lent(1, columns, torch.float32).data_ptr() == address


def test_threads_never_write_into_each_others_memory(blocks: deque[Any]) -> None:
    count, rounds = 4, 300
    together = threading.Barrier(count)
    spoilt, most = list[str](), 2 * count

    def work(number: int) -> None:
        together.wait()
        kept: Tensor | None = None
        for turn in range(rounds):
            mark = float(number * rounds + turn)
            matrix = gemm.lent(3 + turn % 5, 40, torch.float32).fill_(mark)
            total = torch.mm(matrix, matrix.T).mean().item()
            if total != pytest.approx(40 * mark**2) or not matrix.eq(mark).all():
                spoilt.append(f"{number}: {turn}")
            if kept is not None and not kept.eq(mark - 1).all():
                spoilt.append(f"{number}: {turn - 1}, later")
            kept = matrix.T[1:]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not spoilt
    assert 0 < len(blocks) <= most  # as many as were in use at a time


@pytest.mark.usefixtures("blocks")
def test_products_of_several_steps_take_turns_in_two_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sae_sweeps.engine.gemm.CHUNK", 100)  # what is one chunk is never lent
    W, bias = nn.Parameter(drawn(4, 30)), drawn(30)
    seen = set[int]()
    for step in range(6):
        pre_acts = encode(drawn(8, 4, seed=step), W, nn.Parameter(torch.zeros(4)), bias, 1.0)
        seen.add(pre_acts.values.data_ptr())
        loss = pre_acts.at(Selection(None)).values.sum()
        loss.backward()
        del pre_acts, loss
    assert len(seen) <= 2


# ---------------------------------------------------------------- bfloat16


def encoded() -> tuple[PreActs, Tensor]:
    """Pre-activations, yet to be computed, and the exact ones."""
    x, W, b_dec, bias = drawn(40, 24), drawn(24, 70, seed=1), drawn(24, seed=2), drawn(70, seed=3)
    found = encode(x, nn.Parameter(W), nn.Parameter(b_dec), bias, 1.0)
    exact = (x.double() - b_dec.double()) @ W.double() + bias.double()
    return found, exact


def chosen_pairs(pre_acts: PreActs, by: str) -> Selection:
    """Pairs as numbers alone, or with the value that was read there, in pieces or not."""
    if by == "numbers":
        return Selection(torch.arange(0, 40 * 70, 7))
    affinities = Affinities(pre_acts)
    if by == "latents":
        return affinities.largest(torch.full((70,), 6), 6, by_latent=True)
    return affinities.largest_of_tokens(10)


@pytest.mark.parametrize("by", ["numbers", "tokens", "latents"])
@pytest.mark.parametrize("piece", [2**22, 512])
def test_chosen_values_are_the_matrix_s_rounded_once(
    by: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sae_sweeps.engine.pre_acts.PIECE", piece)
    monkeypatch.setattr("sae_sweeps.engine.pre_acts.TOKENS", 8)
    pre_acts, exact = encoded()
    with torch.autocast("cpu", torch.bfloat16):
        selection = chosen_pairs(pre_acts, by)
        chosen, unbiased = (f(selection) for f in (pre_acts.at, pre_acts.projections))
        values = pre_acts.values
        parts = list(pre_acts.pieces(by_latent=by == "latents"))
    assert len(parts) == (1 if piece > 2800 else 9 if by == "latents" else 5)
    assert values.dtype == torch.bfloat16
    rounding = (values.double() - exact).abs().max()
    assert 1e-3 < rounding < 0.2
    for part in parts:
        assert part.values.dtype == torch.bfloat16
        difference = part.values.double() - exact[part.tokens, part.latents]
        assert 1e-3 < difference.abs().max() < 0.2
    flat = selection.flat
    assert flat is not None and len(flat) == 400 + 20 * (by == "latents")
    assert chosen.values.dtype == unbiased.values.dtype == torch.float32
    if len(parts) == 1:
        assert torch.equal(chosen.values, values.flatten()[flat].float())
    assert (chosen.values - exact.flatten()[flat]).abs().max() < 0.2
    bias = drawn(70, seed=3).expand_as(exact)
    assert torch.equal(unbiased.values, chosen.values - bias.flatten()[flat])
    assert chosen.pairs == Pairs((40, 70), flat) or torch.equal(chosen.latents, flat % 70)


def test_gradients_at_chosen_values_are_exact() -> None:
    pre_acts, _ = encoded()
    flat = torch.arange(0, 2800, 7)
    with torch.autocast("cpu", torch.bfloat16):
        values = pre_acts.at(Selection(flat)).values
        values.pow(2).sum().backward()
    assert pre_acts.W_enc.grad is not None
    of_values = torch.zeros(2800, dtype=torch.float64).index_put((flat,), 2 * values.double())
    close(pre_acts.W_enc.grad, pre_acts.centred.double().T @ of_values.view(40, 70))


def test_operators_of_an_accelerator_do_not_go_through_python() -> None:
    """A model's forward pass of 281 operators took three times as long there."""
    with gemm.faster(torch.device("cuda")) as way:
        assert way is None
    if gemm.onednn():
        assert isinstance(gemm.faster(CPU), gemm.ByOneDNN)


def test_a_bias_of_columns_is_added_before_rounding() -> None:
    """A sum of two numbers that bfloat16 has, one of which it would lose when rounded first."""
    left, right, bias = torch.ones(3, 2), torch.tensor([[128.0, 0.5]]), torch.tensor([[0.5]])
    with torch.autocast("cpu", torch.bfloat16):
        assert gemm.product(left, right, bias).eq(129.0).all()
        assert F.linear(left, right).add_(bias).eq(128.0).all()


def test_rounded_weights_are_kept_until_the_values_change() -> None:
    weights = nn.Parameter(drawn(5, 7))
    assert gemm.rounded(weights).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        first = gemm.rounded(weights)
        assert torch.equal(first, weights.bfloat16()) and gemm.rounded(weights) is first
        with torch.no_grad():
            weights.mul_(2)
        again = gemm.rounded(weights)
        assert torch.equal(again, weights.bfloat16()) and not again.requires_grad
        submatrix = weights.detach()[:2]
        assert gemm.rounded(submatrix) is not gemm.rounded(submatrix)  # who knows whose it is


def test_rounded_weights_go_with_their_parameter() -> None:
    weights = nn.Parameter(drawn(5, 7))
    with torch.autocast("cpu", torch.bfloat16):
        copy = weakref.ref(gemm.rounded(weights))
    assert copy() is not None
    del weights
    gc.collect()
    assert copy() is None


def option_files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


CELLS = [
    ("token_choice", "auto"),
    ("token_choice", "dense"),
    ("none", "auto"),
    ("none", "dense"),
    ("feature_choice_scratch", "auto"),
    ("mutual_choice", "auto"),
]


def of_its_folder(run: Run) -> Run:
    """The run with the precision that its folder is named after."""
    precision: Any = run.folder.parent.name.rpartition("-")[2]
    training = replace(run.config.training, precision=precision)
    return replace(run, config=replace(run.config, training=training))


@pytest.mark.parametrize(
    ("allocator", "engine"),
    [CELLS[0], *(pytest.param(*cell, marks=pytest.mark.slow) for cell in CELLS[1:])],
)
def test_training_in_bfloat16_ends_near_float32s(
    allocator: str, engine: str, tmp_path: Path
) -> None:
    also = [
        f"allocator={allocator}",
        f"engine={engine}",
        "training.tokens=8192",
        "stream.batch_tokens=512",
        "evaluation.ce_tokens=0",
    ]
    runs = [
        small_run(tmp_path / f"{name}-{precision}", f"architecture={name}", *also)
        for name in option_files("architecture")
        for precision in ("float32", "bfloat16")
    ]
    outcomes = train(*map(of_its_folder, runs))
    for exact, rounded in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert isinstance(exact, Result) and isinstance(rounded, Result), (exact, rounded)
        assert rounded.cost["precision"] == "bfloat16" != exact.cost["precision"]
        one, other = exact.metrics["fvu"], rounded.metrics["fvu"]
        assert one != other and other == pytest.approx(one, rel=0.05), exact.label
