"""What is listed of affinities, in many pieces, against naive answers on the whole matrix."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sae_sweeps.allocator.feature_choice import feature_choice
from sae_sweeps.allocator.mutual_choice import mutual_choice
from sae_sweeps.allocator.thresholds import LearntThreshold
from sae_sweeps.engine import pre_acts
from sae_sweeps.engine.acts import Listed, Selection
from sae_sweeps.engine.affinities import SAMPLED, Affinities, as_they_are, listed, merged
from sae_sweeps.engine.pre_acts import PreActs, encode
from sae_sweeps.optimizer.adam import Adam
from tests.support.small import affinities_of, pre_acts_of

torch.set_num_threads(1)

D_IN = 3

SHAPES = st.sampled_from(
    [(1, 1), (1, 64), (1, 37), (3, 5), (7, 48), (70, 1), (16, 64), (96, 7), (33, 128), (137, 65)]
)


class Kind(NamedTuple):
    """How pre-activations come about, and affinities of them."""

    size: int
    """of weights and inputs, which are integers: so products are exact, and small ones equal"""
    made: str
    dtype: torch.dtype
    piece: int
    tokens: int
    seed: int


KINDS = st.builds(
    Kind,
    size=st.sampled_from([1, 2, 10, 500]),
    made=st.sampled_from(["as they are", "scaled", "jumped", "extreme"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    piece=st.sampled_from([1, 40, 200, 1000, 2**22]),
    tokens=st.sampled_from([1, 4, 13, 64]),
    seed=st.integers(0, 10**6),
)


@pytest.fixture(autouse=True)
def pieces_as_they_were() -> Iterator[None]:
    before = pre_acts.PIECE, pre_acts.TOKENS
    yield
    pre_acts.PIECE, pre_acts.TOKENS = before


def integers(shape: tuple[int, ...], size: int, kind: Kind) -> Tensor:
    generator = torch.Generator().manual_seed(kind.seed + len(shape) + shape[0])
    return torch.randint(-size, size + 1, shape, generator=generator).to(kind.dtype)


def encoded(batch: int, d_sae: int, kind: Kind, max_listed: float = 1.0) -> PreActs:
    """Pre-activations, in pieces as small as `kind` says."""
    pre_acts.PIECE, pre_acts.TOKENS = kind.piece, kind.tokens
    W_enc = nn.Parameter(integers((d_sae, D_IN), kind.size, kind).T)
    b_dec = nn.Parameter(integers((D_IN,), 1, kind))
    bias = integers((d_sae,), kind.size, kind)
    return encode(integers((batch, D_IN), kind.size, kind), W_enc, b_dec, bias, max_listed)


def map_of(kind: Kind, d_sae: int) -> Callable[[Tensor, slice | Tensor], Tensor]:
    """Maps that depend on the latent; some make zeros of both signs, or infinities."""
    place = torch.arange(d_sae)
    factors = torch.tensor([1.0, 0.5, 0.0, -1.0, 2.0], dtype=kind.dtype)[place % 5]
    bounds = (place % 4 - 1).to(kind.dtype)

    def extreme(values: Tensor, latents: slice | Tensor) -> Tensor:
        values = values.where(values != 0, -0.0).where(values != 1, 0.0)
        values = values.where(values < 3 * kind.size + place[latents], math.inf)
        return values.where(values > -3 * kind.size, -math.inf)

    def scaled(values: Tensor, latents: slice | Tensor) -> Tensor:
        return values * factors[latents]

    def jumped(values: Tensor, latents: slice | Tensor) -> Tensor:
        return torch.where(values > bounds[latents], values, 0.0)

    made = {"as they are": as_they_are, "scaled": scaled, "jumped": jumped, "extreme": extreme}
    return made[kind.made]


class Case(NamedTuple):
    """Affinities, and both matrices whole."""

    affinities: Affinities
    pre_acts: Tensor
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.affinities.shape


def case_of(shape: tuple[int, int], kind: Kind) -> Case:
    latent, make = encoded(*shape, kind), map_of(kind, shape[1])
    whole = (latent.x - latent.b_dec) @ latent.W_enc + latent.bias
    whole = whole.detach()
    return Case(Affinities(latent, make), whole, make(whole, slice(None)))


def assert_found(case: Case, found: Selection, wanted: Tensor) -> None:
    """The pairs of a mask, ascending, with what the matrices have there."""
    assert isinstance(found, Listed)
    assert found.flat.tolist() == wanted.flatten().nonzero()[:, 0].tolist()
    assert_read(case, found)


def assert_read(case: Case, found: Listed) -> None:
    assert found.flat.dtype == torch.int64 and (found.flat.diff() > 0).all()
    assert torch.equal(found.pre_acts, case.pre_acts.flatten()[found.flat])
    assert torch.equal(found.affinities, case.values.flatten()[found.flat])


def row_ranks(values: Tensor) -> Tensor:
    """Each entry's rank in its row, from 0; of equal ones the first is before."""
    order = values.sort(dim=1, descending=True, stable=True).indices
    return torch.empty_like(order).scatter(1, order, torch.arange(values.shape[1]).expand_as(order))


def bounds_near(case: Case, size: int, data: st.DataObject) -> Tensor:
    """Entries and what lies beside, above and below them."""
    flat = case.values.flatten()
    entry = st.integers(0, len(flat) - 1).map(lambda place: flat[place].item())
    far = [-math.inf, 0.0, -0.0, 1e-6, -1e9, 1e9, math.inf]
    bounds = data.draw(st.lists(entry | st.sampled_from(far), min_size=1, max_size=7))
    places = torch.arange(size) * 5 % len(bounds)
    return torch.tensor(bounds, dtype=flat.dtype)[places]


# ---------------------------------------------------------------- listing


@given(SHAPES, KINDS, st.booleans())
def test_pieces_make_up_the_matrix(shape: tuple[int, int], kind: Kind, by_latent: bool) -> None:
    case = case_of(shape, kind)
    pieces = list(case.affinities.pre_acts.pieces(by_latent))
    seen = torch.zeros(shape)
    for piece in pieces:
        assert torch.equal(piece.values, case.pre_acts[piece.tokens, piece.latents])
        seen[piece.tokens, piece.latents] += 1
        if len(pieces) > 1:
            rows = shape[0] if by_latent else kind.tokens
            assert piece.values.T.is_contiguous()
            assert piece.values.numel() <= max(kind.piece, rows * (1 if by_latent else shape[1]))
    assert (seen == 1).all()
    assert (len(pieces) == 1) or shape[0] * shape[1] > kind.piece
    assert torch.equal(case.affinities.values, case.values)


@given(SHAPES, KINDS, st.booleans(), st.data())
def test_reaching_lists_what_is_at_least_a_bound(
    shape: tuple[int, int], kind: Kind, by_latent: bool, data: st.DataObject
) -> None:
    case = case_of(shape, kind)
    bounds = bounds_near(case, shape[1] if by_latent else 1, data)
    found = case.affinities.reaching(bounds[:, None], by_latent)
    assert_found(case, found, case.values >= bounds)


@given(SHAPES, KINDS, st.booleans(), st.data())
def test_above_lists_what_is_more_than_a_threshold(
    shape: tuple[int, int], kind: Kind, by_latent: bool, data: st.DataObject
) -> None:
    case = case_of(shape, kind)
    threshold = bounds_near(case, shape[1] if by_latent else 1, data)
    if kind.made == "extreme":
        threshold = threshold.clamp(max=1e9)
    assert_found(case, case.affinities.above(threshold), case.values > threshold)


@given(SHAPES, KINDS, st.booleans(), st.data())
def test_largest_are_those_of_a_stable_sort(
    shape: tuple[int, int], kind: Kind, by_latent: bool, data: st.DataObject
) -> None:
    case = case_of(shape, kind)
    rows, n = shape[::-1] if by_latent else shape
    most = data.draw(st.integers(1, n) | st.integers(1, min(n, 3)) | st.just(n))
    budgets = 1 + integers((rows,), 10**6, kind).long().abs() % most
    found = case.affinities.largest(budgets, most, by_latent)
    ranks = row_ranks(case.values.T).T if by_latent else row_ranks(case.values)
    assert_found(case, found, ranks < (budgets if by_latent else budgets[:, None]))
    if not by_latent:
        chosen = case.affinities.largest_of_tokens(most)
        assert_found(case, chosen, row_ranks(case.values) < most)


@pytest.mark.slow
@given(SHAPES, KINDS, st.data())
def test_some_latents_and_some_tokens_are_a_matrix_of_their_own(
    shape: tuple[int, int], kind: Kind, data: st.DataObject
) -> None:
    case, (batch, d_sae) = case_of(shape, kind), shape
    some = torch.tensor(data.draw(st.lists(st.integers(0, d_sae - 1), min_size=1, unique=True)))
    own = Case(case.affinities.of(some), case.pre_acts[:, some], case.values[:, some])
    step = max(1, batch // SAMPLED)
    sample = Case(case.affinities.sample(), case.pre_acts[::step], case.values[::step])
    assert min(batch, SAMPLED) <= sample.affinities.shape[0] < 2 * SAMPLED
    twice = own.affinities.of(torch.arange(len(some) - 1, -1, -1)).sample()
    both = Case(twice, own.pre_acts[::step].flip(1), own.values[::step].flip(1))
    for part in (own, sample, both):
        assert part.shape == part.values.shape
        bounds = bounds_near(part, part.shape[1], data)
        found = part.affinities.reaching(bounds[:, None], by_latent=True)
        assert_found(part, found, part.values >= bounds)
        assert torch.equal(part.affinities.values, part.values)


@given(SHAPES, KINDS, st.integers(1, 4))
def test_parts_are_merged_in_order(shape: tuple[int, int], kind: Kind, parts: int) -> None:
    case = case_of(shape, kind)
    everything = case.affinities.at(torch.arange(shape[0] * shape[1]))
    of_part = integers((shape[0] * shape[1],), 10**6, kind).long() % (parts + 1)
    found = merged([everything.keep(of_part == part) for part in range(parts)])
    assert_found(case, found, (of_part < parts).view(shape))


# ---------------------------------------------------------------- choices of a batch


def learnt(values: Tensor) -> LearntThreshold:
    """Thresholds with these values."""
    threshold, known = LearntThreshold(len(values), 1).to(values.dtype), values.isfinite()
    threshold.smallest.update(values.where(known, 0.0), known, 10**6)
    assert torch.equal(threshold.value(), values)
    return threshold


def thresholds(right: Tensor, data: st.DataObject) -> LearntThreshold | None:
    """None, or positive thresholds too low, about right, too high, infinite; or all of these."""
    right = right.where((right > 0) & right.isfinite(), 1.0)
    factors = [1e-6, 0.5, 0.95, 1.0, 1.1, 2.0, 1e6, math.inf]
    drawn = data.draw(st.lists(st.sampled_from(factors), max_size=4))
    if not drawn:
        return None
    return learnt(
        right * torch.tensor(drawn, dtype=right.dtype)[torch.arange(len(right)) % len(drawn)]
    )


def assert_passed(case: Case, selection: Selection, threshold: LearntThreshold | None) -> None:
    assert isinstance(selection, Listed)
    if threshold is None:
        assert selection.passed is None
    else:
        assert selection.passed is not None and selection.passed.shape == ()
        assert selection.passed == (case.values > threshold.value()).sum()


def same_by_any_way(case: Case, choose: Callable[[], Selection], mask: Tensor) -> Listed:
    """What is chosen where nothing may be waited for: as many, of the same values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Affinities, "listed", property(lambda _: False))
        found = choose()
    assert found.flat is not None
    assert (found.flat.diff() > 0).all()
    chosen = torch.zeros(case.values.numel(), dtype=torch.bool).index_fill(0, found.flat, True)
    assert torch.equal(sorted_values(case, chosen.view(mask.shape)), sorted_values(case, mask))
    return found  # pyright: ignore


def assert_chosen(
    case: Case, choose: Callable[[], Selection], mask: Tensor, threshold: LearntThreshold | None
) -> Listed:
    """The pairs of a mask, and what passes is counted; returned is what is chosen without waiting.

    That has been checked too.
    """
    selection, other = choose(), same_by_any_way(case, choose, mask)
    assert_found(case, selection, mask)
    assert_passed(case, selection, threshold)
    assert_read(case, other)
    assert_passed(case, other, threshold)
    return other


def sorted_values(case: Case, mask: Tensor) -> Tensor:
    return case.values[mask].sort().values


@given(SHAPES, KINDS, st.data())
def test_mutual_choice_is_a_stable_sort(
    shape: tuple[int, int], kind: Kind, data: st.DataObject
) -> None:
    case = case_of(shape, kind)
    size = case.values.numel()
    budget = data.draw(st.integers(0, size) | st.integers(0, min(size, 20)) | st.just(size))
    ordered = case.values.flatten().sort(descending=True).values
    right = ordered[max(budget - 1, 0)].expand(data.draw(st.sampled_from([1, shape[1]])))
    threshold = thresholds(right, data)
    mask = (row_ranks(case.values.view(1, -1)) < budget).view(shape)

    choose = partial(mutual_choice, case.affinities, budget, threshold)
    assert_chosen(case, choose, mask, threshold)


@pytest.mark.parametrize("others", [0.5, 0.0])
@pytest.mark.parametrize("spread", [5000, 10])
def test_a_sample_that_misleads_leaves_mutual_choice_as_it_is(others: float, spread: int) -> None:
    # Every fourth token is looked at: these have the largest affinities, and too few.
    batch, d_sae, budget = 256, 64, 64 * 64 + 100
    values = torch.full((batch, d_sae), others)
    values[::4] = 1.0 + torch.arange(64 * 64).view(64, 64) % spread / 5000
    case = Case(affinities_of(values), values, values)
    selection = mutual_choice(case.affinities, budget)
    assert_found(case, selection, (row_ranks(values.view(1, -1)) < budget).view(batch, d_sae))


@given(SHAPES, KINDS, st.data())
def test_feature_choice_is_a_stable_sort_of_each_column(
    shape: tuple[int, int], kind: Kind, data: st.DataObject
) -> None:
    case, (batch, d_sae) = case_of(shape, kind), shape
    one = st.sampled_from([0, 1, batch // 2, batch]) | st.integers(0, batch)
    drawn = torch.tensor(data.draw(st.lists(one, min_size=1, max_size=9)))
    budgets = drawn[torch.arange(d_sae) % len(drawn)]
    ordered = case.values.sort(dim=0, descending=True).values
    right = ordered.gather(0, (budgets - 1).clamp(min=0)[None])[0]
    threshold = thresholds(right, data)
    mask = (row_ranks(case.values.T) < budgets[:, None]).T

    choose = partial(feature_choice, case.affinities, budgets, threshold)
    other = assert_chosen(case, choose, mask, threshold)
    assert other.flat.remainder(d_sae).bincount(minlength=d_sae).tolist() == budgets.tolist()


@given(SHAPES, KINDS, st.data())
def test_token_choice_is_of_the_same_values_by_any_way(
    shape: tuple[int, int], kind: Kind, data: st.DataObject
) -> None:
    case = case_of(shape, kind)
    k = data.draw(st.integers(1, shape[1]) | st.just(shape[1]))
    mask = row_ranks(case.values) < k
    found = same_by_any_way(case, lambda: case.affinities.largest_of_tokens(k), mask)
    assert (torch.div(found.flat, shape[1], rounding_mode="floor").bincount() == k).all()


# ---------------------------------------------------------------- everything, or what is above


def sparse_pre_acts(share: float, sampled: float, max_listed: float) -> tuple[PreActs, Tensor]:
    """Pre-activations 1 on shares of all latents, and of those of tokens that are looked at."""
    batch, d_sae = 256, 50
    values = torch.where(torch.arange(d_sae) < share * d_sae, 1.0, -1.0).repeat(batch, 1)
    values[:: batch // SAMPLED] = torch.where(torch.arange(d_sae) < sampled * d_sae, 1.0, -1.0)
    return pre_acts_of(values, max_listed), values


@pytest.mark.parametrize("piece", [100, 2**22])
@pytest.mark.parametrize("sampled", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("max_listed", [0.0, 0.25, 1.0])
def test_everything_is_listed_where_few_pairs_are_above(
    max_listed: float, share: float, sampled: float, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pre_acts, "PIECE", piece)
    latent, values = sparse_pre_acts(share, sampled, max_listed)
    found = listed(Selection(None), latent, above=torch.zeros(1))
    few = max_listed > 0 and (values > 0).float().mean() <= max_listed >= sampled
    if few:
        assert_found(Case(Affinities(latent), values, values), found, values > 0)
    else:
        assert found.flat is None
    # Either way a rectifier's activations are the same.
    assert torch.equal(latent.at(found).relu().dense(), values.relu())


@given(SHAPES, KINDS, st.sampled_from([0.01, 0.3, 1.0]), st.data())
def test_listing_is_by_each_latents_own_threshold(
    shape: tuple[int, int], kind: Kind, max_listed: float, data: st.DataObject
) -> None:
    kind = kind._replace(made="as they are")
    case = case_of(shape, kind)
    latent = encoded(*shape, kind, max_listed)
    above = bounds_near(case, shape[1], data).clamp(max=1e9)
    found = listed(Selection(None), latent, above=above)
    mask = case.values > above
    sample = mask[:: max(1, shape[0] // SAMPLED)]
    if max(mask.double().mean(), sample.double().mean()) <= max_listed:
        assert_found(case, found, mask)
    else:
        assert found.flat is None


def test_what_is_chosen_already_stays() -> None:
    latent, _ = sparse_pre_acts(0.1, 0.1, 1.0)
    chosen = Selection(torch.tensor([3, 5]))
    assert listed(chosen, latent, above=torch.zeros(1)) is chosen


# ---------------------------------------------------------------- weights that have changed


READS: dict[str, Callable[[PreActs], object]] = {
    "values": lambda latent: latent.values,
    "pieces": lambda latent: list(latent.pieces()),
    "pieces by latent": lambda latent: list(latent.pieces(by_latent=True)),
    "reaching": lambda latent: Affinities(latent).reaching(torch.zeros(1, 1)),
    "largest": lambda latent: Affinities(latent).largest_of_tokens(1),
    "sample": lambda latent: Affinities(latent).sample().values,
    "everything": lambda latent: latent.at(Selection(None)),
    "some latents": lambda latent: latent.of(torch.tensor([1, 2])).values,
}


def in_place(latent: PreActs) -> None:
    with torch.no_grad():
        latent.W_enc.mul_(2.0)


def by_adam(latent: PreActs) -> None:
    W_enc = latent.W_enc
    assert isinstance(W_enc, nn.Parameter)
    before = W_enc.detach().clone()
    optimiser = Adam([W_enc], [1.0], lr=0.1, beta1=0.9, beta2=0.999)
    W_enc.grad = torch.ones_like(W_enc)
    optimiser.update(0.1)
    assert not torch.equal(before, W_enc)


@pytest.mark.parametrize("piece", [16, 2**22])
@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("change", [in_place, by_adam])
def test_pre_activations_are_not_those_of_later_weights(
    change: Callable[[PreActs], None], read: str, piece: int
) -> None:
    kind = Kind(5, "as they are", torch.float32, piece, 4, 0)
    latent = encoded(17, 12, kind)
    READS[read](latent)
    fresh = encoded(17, 12, kind)
    change(fresh)
    with pytest.raises(RuntimeError, match="after the weights changed"):
        READS[read](fresh)


def test_what_was_read_in_time_stays() -> None:
    latent = encoded(17, 12, Kind(5, "as they are", torch.float32, 2**22, 4, 0))
    values, some = latent.values.clone(), latent.of(torch.tensor([4, 1]))
    found = Affinities(latent).largest_of_tokens(3)
    in_place(latent)
    assert torch.equal(latent.values, values)
    assert torch.equal(some.values, values[:, [4, 1]])
    assert found.flat is not None
    assert torch.equal(latent.at(found).values, values.flatten()[found.flat])
