"""Sparse activations and products with them, against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.engine.acts import Selection, SparseActs, decode
from sae_sweeps.engine.sparse import Pairs

torch.set_num_threads(1)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """A matrix of values, which of its entries are listed, and a seed."""
    batch, d_sae = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    entries = st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0])
    numbers = draw(st.lists(entries, min_size=batch * d_sae, max_size=batch * d_sae))
    listed = draw(st.lists(st.booleans(), min_size=batch * d_sae, max_size=batch * d_sae))
    values = torch.tensor(numbers, dtype=torch.float64).view(batch, d_sae)
    return values, torch.tensor(listed).view(batch, d_sae), draw(st.integers(0, 99))


def both_forms(values: Tensor, listed: Tensor) -> tuple[SparseActs, SparseActs]:
    """The same activations as triples and as a matrix."""
    triples = Selection(listed.flatten().nonzero().squeeze(1)).of(values)
    return triples.relu(), Selection(None).of(torch.where(listed, values, 0.0)).relu()


@settings(deadline=None)
@given(cases())
def test_both_forms_say_what_the_matrix_says(case: tuple[Tensor, Tensor, int]) -> None:
    values, listed, _ = case
    matrix = torch.where(listed, values, 0.0).clamp(min=0)
    for acts in both_forms(values, listed):
        assert acts.shape == tuple(values.shape)
        assert torch.equal(acts.dense(), matrix)
        assert torch.equal(acts.tokens_per_latent, (matrix > 0).sum(0))
        assert torch.equal(acts.l0_per_token(), (matrix > 0).sum(1))
        assert acts.l0().item() == pytest.approx((matrix > 0).sum().item() / len(matrix))
        assert (acts.tokens * values.shape[1] + acts.latents).diff().gt(0).all()
        assert torch.equal(
            acts.dense()[acts.tokens, acts.latents].sum(), matrix.sum()
        )  # every activation is listed once
    triples, _ = both_forms(values, listed)
    assert torch.equal(torch.stack([triples.tokens, triples.latents], 1), listed.nonzero())


@settings(deadline=None)
@given(cases(), st.integers(1, 5))
def test_decoding_and_its_gradients_are_those_of_the_matrix_product(
    case: tuple[Tensor, Tensor, int], d_in: int
) -> None:
    values, listed, seed = case
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(values.shape[1], d_in, generator=generator, dtype=torch.float64)
    upstream = torch.randn(len(values), d_in, generator=generator, dtype=torch.float64)
    wanted: list[Tensor] = []
    for form in range(3):
        u, W_dec = values.clone().requires_grad_(), rows.clone().requires_grad_()
        if form == 0:  # the reference
            recon = torch.where(listed, u, 0.0).relu() @ W_dec
        else:
            recon = decode(both_forms(u, listed)[form - 1], W_dec)
        (recon * upstream).sum().backward()
        assert u.grad is not None and W_dec.grad is not None
        found = [recon.detach(), u.grad, W_dec.grad]
        wanted = wanted or found
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)


def test_nothing_listed_decodes_to_zero_with_zero_gradient() -> None:
    W_dec = torch.randn(4, 3).requires_grad_()
    values = torch.zeros(5, 4).requires_grad_()
    acts = Selection(torch.zeros(0, dtype=torch.int64)).of(values)
    recon = decode(acts, W_dec)
    assert recon.shape == (5, 3) and not recon.any()
    recon.sum().backward()
    assert W_dec.grad is not None and not W_dec.grad.any()
    assert (acts.l0(), acts.l0_per_token().tolist()) == (0, [0] * 5)
    assert acts.tokens_per_latent.tolist() == [0] * 4


def test_tokens_without_activations_at_both_ends_and_between() -> None:
    W_dec = torch.arange(6.0).view(3, 2)
    acts = SparseActs(Pairs((6, 3), torch.tensor([5, 9, 11])), torch.tensor([1.0, 2.0, 3.0]))
    recon = decode(acts, W_dec)
    expected = torch.zeros(6, 2)
    expected[1] = W_dec[2]
    expected[3] = 2 * W_dec[0] + 3 * W_dec[2]
    assert torch.equal(recon, expected)


def test_decoding_a_token_does_not_depend_on_its_companions() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20, 50, generator=generator)
    W_dec = torch.randn(50, 8, generator=generator)
    flat = (values > 1).flatten().nonzero().squeeze(1)
    whole = decode(Selection(flat).of(values).relu(), W_dec)
    for token, row in enumerate(values):
        mine = (row > 1).nonzero().squeeze(1)
        assert torch.equal(decode(Selection(mine).of(row[None]).relu(), W_dec)[0], whole[token])
