"""The stream: chunks as a pure function of their index, epochs, held-out tokens, scale."""

import gc
import json
import weakref
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jaxtyping import Float, Int
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sae_sweeps.config.options import StreamOptions
from sae_sweeps.data.embedded import Embedded
from sae_sweeps.embedded import BOS, MODEL, load_tokens
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import (
    Architecture,
    Data,
    Rows,
    Splice,
    SplicedLosses,
    Split,
    TargetModel,
)
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.stream.live import Stream, require_held_out
from sae_sweeps.target_model.transformer_lens import TransformerLens
from sae_sweeps.training.member import new_sae
from sae_sweeps.training.trainer import Trainer
from tests.support.small import every, measure, small_run, train
from tests.support.streams import Alone

Token = tuple[int, ...]
"""Split, row and position: what an activation of `Coded` says of its origin."""

TRAIN, HELD_OUT = 0, 1


class Coded(TargetModel):
    """Activations that name their own split, row and position; position 0 is a BOS, never given."""

    has_loss = False

    def __init__(self, rows: int = 50, width: int = 7, held_out_rows: int = 20) -> None:
        self.d_in, self.tokens_per_row = 3, width
        self.device = torch.device("cpu")
        self.description = {}
        self.counts = {"train": rows, "held_out": held_out_rows}

    def row_count(self, split: Split) -> int:
        return self.counts[split]

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        assert rows.min() >= 0 and rows.max() < self.counts[split]
        which = TRAIN if split == "train" else HELD_OUT
        grid = torch.cartesian_prod(rows, torch.arange(1, self.tokens_per_row + 1))
        return torch.nn.functional.pad(grid, (1, 0), value=which).float()

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        raise AssertionError(f"it has no loss: {rows}, {splice}")


class Given(Coded):
    """The same with the activations' values replaced by a constant row."""

    def __init__(self, row: Sequence[float]) -> None:
        super().__init__()
        self.row = torch.tensor(row)

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        del split
        return self.row.expand(len(rows) * self.tokens_per_row, -1)


LEFT_OUT = {"special_tokens": False, "skip_first": 0, "max_norm": None}


def stream(target: TargetModel | None = None, held_out: int = 140, **changed: Any) -> Alone:
    """A stream of small batches, over 350 coded tokens unless told otherwise."""
    numbers = {"batch_tokens": 10, "chunk_tokens": 70, "seed": 0, "calibration_tokens": 64}
    values: dict[str, Any] = numbers | {"repeat": False, "centre": False} | LEFT_OUT | changed
    return Alone(target or Coded(), StreamOptions(**values), held_out)


def origins(acts: Tensor, scale: float) -> list[Token]:
    """Where each activation comes from."""
    return [tuple(row) for row in (acts / scale).round().int().tolist()]


def tokens_of(made: Alone, chunks: int) -> list[Token]:
    """The origins of the first chunks' tokens, in order."""
    return [token for i in range(chunks) for token in origins(made.chunk(i), made.scale)]


# --- Chunks --------------------------------------------------------------------------------


def test_a_chunk_depends_on_nothing_but_its_index() -> None:
    first = stream()
    expected = [first.chunk(i) for i in range(5)]
    late = stream()
    for i in (4, 0, 3, 3, 1, 2):
        assert torch.equal(late.chunk(i), expected[i])
    assert torch.equal(stream().chunk(3), expected[3])


def test_threads_get_the_same_chunks() -> None:
    made = stream(Coded(rows=500))
    expected = [made.chunk(i) for i in range(40)]
    shared = stream(Coded(rows=500))
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(shared.chunk, [*range(40), *reversed(range(40))]))
    for i, chunk in enumerate(given):
        assert torch.equal(chunk, expected[i if i < 40 else 79 - i])


def test_company_in_the_process_changes_nothing() -> None:
    expected = stream().chunk(1)
    torch.manual_seed(5)
    torch.rand(3)
    for seed in range(20):  # more permutations than are kept
        stream(seed=seed).chunk(0)
    assert torch.equal(stream().chunk(1), expected)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 30),
    width=st.integers(1, 9),
    batch=st.integers(1, 12),
    batches=st.integers(1, 6),
    rest=st.integers(0, 11),
    chunks=st.integers(1, 8),
    seed=st.integers(0, 2**63 - 1),
)
@example(rows=1, width=1, batch=12, batches=6, rest=0, chunks=8, seed=0)
def test_every_token_comes_once_an_epoch(
    rows: int, width: int, batch: int, batches: int, rest: int, chunks: int, seed: int
) -> None:
    """However chunks, rows and epochs divide: tokens come equally often, or differ by one."""
    target = Coded(rows, width)
    chunk_tokens = batch * batches + min(rest, batch - 1)
    made = stream(
        target,
        batch_tokens=batch,
        chunk_tokens=chunk_tokens,
        seed=seed,
        calibration_tokens=1,
        repeat=True,
    )
    seen = Counter(tokens_of(made, chunks))
    total, held = chunks * batch * batches, rows * width
    assert sum(seen.values()) == total
    assert set(seen) <= {(TRAIN, r, p) for r in range(rows) for p in range(1, width + 1)}
    epochs, over = divmod(total, held)
    expected = Counter({epochs: held - over, epochs + 1: over})
    counts = Counter(seen.values()) + Counter({0: held - len(seen)})
    assert counts == +expected


def test_chunks_are_whole_batches() -> None:
    made = stream(batch_tokens=16, chunk_tokens=70)
    assert made.chunk_tokens == 64 and made.chunk(0).shape == (64, 3)
    assert not set(origins(made.chunk(0), made.scale)) & set(origins(made.chunk(1), made.scale))


def test_tokens_of_a_chunk_are_shuffled_over_its_rows() -> None:
    """A batch holds tokens of most rows of its chunk, not one row after the other."""
    made = stream(Coded(rows=200), batch_tokens=50, chunk_tokens=700)
    batch = origins(made.chunk(0)[:50], made.scale)
    assert len({row for _, row, _ in batch}) > 25
    orders = {tuple(p for *_, p in origins(made.chunk(i), made.scale)) for i in range(2)}
    assert len(orders) == 2  # each chunk is shuffled in its own way


# --- Seeds and epochs ----------------------------------------------------------------------


def test_the_seed_rules_the_order_and_nothing_else() -> None:
    streams = [stream(seed=seed) for seed in (0, 1, 2**63 - 1)]
    orders = [tokens_of(made, 5) for made in streams]
    assert len({tuple(order) for order in orders}) == 3
    assert len({frozenset(order) for order in orders}) == 1  # one epoch is five chunks
    assert len({frozenset(order[:70]) for order in orders}) == 3


def test_held_out_tokens_do_not_depend_on_the_seed() -> None:
    made = [stream(held_out=100, seed=seed) for seed in (0, 1, 7)]
    held = [origins(one.held_out, one.scale) for one in made]
    assert held[0] == held[1] == held[2]
    assert {split for split, _, _ in held[0]} == {HELD_OUT}
    rows = [one.held_out_rows(100).tolist() for one in made]
    assert rows[0] == rows[1] == rows[2]


def test_the_second_epoch_has_another_order() -> None:
    made = stream(repeat=True)
    chunks = [set(origins(made.chunk(i), made.scale)) for i in range(10)]
    first, second = chunks[:5], chunks[5:]
    assert set().union(*first) == set().union(*second)
    for one, other in zip(first, second, strict=True):
        assert one != other  # other rows, not the same rows shuffled again


def test_data_end_where_repeating_is_off() -> None:
    made = stream()
    made.require(350)
    with pytest.raises(ConfigError, match=r"training\.tokens is 351: .* hold 350 .*stream\.repeat"):
        made.require(351)
    stream(repeat=True).require(10**9)


def test_without_repeating_no_token_comes_twice() -> None:
    """A run over all 350 tokens, in chunks of 80: the last chunk is needed for 30 tokens only."""
    made = stream(chunk_tokens=80)
    made.require(350)
    assert max(Counter(tokens_of(made, 5)[:350]).values()) == 1


# --- Held-out tokens -----------------------------------------------------------------------


def test_held_out_tokens_and_rows_go_together() -> None:
    for tokens in (7, 63, 140):
        made = stream(held_out=tokens)
        rows = made.held_out_rows(tokens).tolist()
        expected = {(HELD_OUT, row, p) for row in rows for p in range(1, 8)}
        assert set(origins(made.held_out, made.scale)) == expected
    made = stream()
    assert made.held_out_rows(8).tolist() == made.held_out_rows(14).tolist()


def test_more_held_out_tokens_than_there_are_is_an_error() -> None:
    require_held_out(stream().order, 140)
    with pytest.raises(ConfigError, match=r"evaluation\.tokens is 141: .* hold 140 held-out"):
        require_held_out(stream().order, 141)


@pytest.mark.slow
def test_a_finished_pack_lets_go_of_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep over streams would else hold the target model of each, on its device."""
    made: list[weakref.ref[Stream]] = []
    initialise = Stream.__init__

    def remember(self: Stream, *given: Any) -> None:
        initialise(self, *given)
        made.append(weakref.ref(self))

    monkeypatch.setattr(Stream, "__init__", remember)
    for seed in (0, 1):
        [outcome] = train(small_run(tmp_path, f"stream.seed={seed}"))
        assert isinstance(outcome, Result)
    gc.collect()
    assert [stream() for stream in made] == [None, None]


# --- Scale ---------------------------------------------------------------------------------


def test_the_scale_makes_the_mean_square_norm_one() -> None:
    made = stream(calibration_tokens=350)
    epoch = torch.cat([made.chunk(i) for i in range(5)])
    assert epoch.pow(2).sum(1).mean().item() == pytest.approx(1, rel=1e-6)
    assert torch.allclose(made.mean, epoch.mean(0), atol=1e-6)


def test_scale_and_centre_come_from_the_first_tokens() -> None:
    made = stream(chunk_tokens=70, calibration_tokens=70)
    raw = made.chunk(0).double() / made.scale
    assert made.scale == pytest.approx(1 / raw.pow(2).sum(1).mean().sqrt().item(), rel=1e-6)
    assert torch.allclose(made.mean.double(), raw.mean(0) * made.scale, atol=1e-6)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ([0.0, 0.0, 0.0], "all zero"),
        ([1e38, 1e38, 0.0], "too large"),
        ([1.0, torch.nan, 0.0], "not finite on 64 of 64 tokens"),
        ([torch.inf, 1.0, 1.0], "damaged"),
    ],
)
def test_activations_without_a_scale_are_refused(row: list[float], why: str) -> None:
    with pytest.raises(ConfigError, match=f"target_model: .*{why}"):
        stream(Given(row))


# --- Centring ------------------------------------------------------------------------------

METHODS = ("relu", "gated", "jumprelu", "topk", "mutual_choice", "feature_choice")
CENTRED = ["stream.centre=true", "stream.batch_tokens=1024"]


def test_centring_takes_the_mean_off_and_scales_what_is_left() -> None:
    made, raw = stream(calibration_tokens=350, centre=True), stream(calibration_tokens=350)
    epoch = torch.cat([made.chunk(i) for i in range(5)])
    given = torch.cat([raw.chunk(i) for i in range(5)]).double() / raw.scale
    assert torch.allclose(epoch.mean(0), torch.zeros(3), atol=1e-6)
    assert epoch.pow(2).sum(1).mean().item() == pytest.approx(1, rel=1e-6)
    spread = (given - given.mean(0)).pow(2).sum(1).mean().sqrt()
    assert torch.allclose(epoch.double(), (given - given.mean(0)) / spread, atol=1e-5)
    assert torch.allclose(made.mean, torch.zeros(3), atol=1e-6)  # where b_dec starts
    assert torch.allclose(made.unscaled(epoch).double(), given, atol=1e-4)
    assert torch.allclose(made.scaled(made.unscaled(epoch)), epoch, atol=1e-6)


def test_the_centre_is_the_calibration_tokens_mean_for_every_split() -> None:
    made, raw = stream(calibration_tokens=70, centre=True), stream(calibration_tokens=70)
    mean = (raw.chunk(0) / raw.scale).mean(0)
    assert torch.allclose(made.offset, mean, atol=1e-5)
    assert torch.allclose(made.unscaled(made.held_out), raw.unscaled(raw.held_out))


@pytest.mark.parametrize("row", [[3.0, 1.0, 2.0], [0.5, 0.0, 0.25]])
def test_activations_that_are_all_the_same_have_no_scale_around_their_mean(
    row: list[float],
) -> None:
    assert stream(Given(row)).scale > 0
    with pytest.raises(ConfigError, match="all zero"):
        stream(Given(row), centre=True)


@dataclass
class Folded:
    """A centred run, and its SAE's figures before it was saved."""

    run: Run
    first_b_dec: Tensor
    stream: Stream
    b_dec: Tensor
    recon: Tensor
    """of the scaled held-out tokens"""


@pytest.fixture(scope="module")
def folded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folded]:
    """A run of each method."""
    unscale, initialise = Stream.unscale, Trainer.__init__
    first, last = list[Tensor](), list[tuple[Stream, Tensor, Tensor]]()

    def begin(self: Trainer, sae: Architecture, *others: Any) -> None:
        first.append(sae.b_dec.detach().clone())
        initialise(self, sae, *others)

    def end(self: Stream, sae: Architecture) -> None:
        last.append((self, sae.b_dec.detach().clone(), recon_of(sae, self.held_out)))
        unscale(self, sae)

    made: dict[str, Folded] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", begin)
        patch.setattr(Stream, "unscale", end)
        for method in METHODS:
            run = small_run(tmp_path_factory.mktemp(method), f"method={method}", *CENTRED)
            assert isinstance(train(run)[0], Result)
            made[method] = Folded(run, first[-1], *last[-1])
    return made


@torch.no_grad()
def recon_of(sae: Architecture, x: Tensor) -> Tensor:
    """Batch-free reconstructions."""
    return sae.eval()(x, torch.zeros(len(sae.W_dec), dtype=torch.bool)).recon


def saved(run: Run) -> Architecture:
    """The SAE that a finished run left, in the activations' own units."""
    sae = new_sae(run.config, 128)
    sae.load_state_dict(load_file(run.folder / "checkpoint" / "weights.safetensors"))
    return sae


def nearly(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding, by the largest value."""
    return (one - other).abs().max().item() < 1e-5 * other.abs().max().item()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_saved_weights_take_raw_activations(folded: dict[str, Folded], method: str) -> None:
    made = folded[method]
    assert made.stream.offset.norm() * made.stream.scale > 0.1
    assert made.first_b_dec.abs().max() < 1e-5
    x = made.stream.held_out
    raw = x / made.stream.scale + made.stream.offset
    recon = recon_of(saved(made.run), raw)
    assert agreeing(recon, made.recon / made.stream.scale + made.stream.offset) > 0.995
    b_dec = made.b_dec / made.stream.scale + made.stream.offset
    assert nearly(saved(made.run).b_dec, b_dec) and made.b_dec.abs().max() > 1e-3


def agreeing(one: Tensor, other: Tensor) -> float:
    """Share of tokens with the same reconstruction; rounding may move an entry over a threshold."""
    return ((one - other).abs().amax(1) < 1e-4 * other.abs().max()).double().mean().item()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_folding_there_and_back_changes_nothing(folded: dict[str, Folded], method: str) -> None:
    made, sae = folded[method], saved(folded[method].run)
    made.stream.rescale(sae)
    assert nearly(sae.b_dec, made.b_dec)
    assert agreeing(recon_of(sae, made.stream.held_out), made.recon) > 0.995
    made.stream.unscale(sae)
    for name, tensor in saved(made.run).state_dict().items():
        ours = sae.state_dict()[name]
        assert torch.allclose(ours, tensor, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("method", ["relu", "topk", "mutual_choice"])
def test_the_saelens_folder_takes_raw_activations(folded: dict[str, Folded], method: str) -> None:
    """By the formula of SAELens' layout: the mean has gone into b_dec, and nothing else is told."""
    made = folded[method]
    w = load_file(made.run.folder / "sae" / "sae_weights.safetensors")
    cfg = json.loads((made.run.folder / "sae" / "cfg.json").read_text())
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"]
    x = made.stream.held_out / made.stream.scale + made.stream.offset
    acts = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).relu()
    if cfg["architecture"] == "topk":
        acts = acts * (acts >= acts.topk(cfg["k"], dim=1).values[:, -1:])
    acts = acts * (acts > w.get("threshold", torch.tensor(0.0)))
    recon = acts @ w["W_dec"] + w["b_dec"]
    assert agreeing(recon, made.recon / made.stream.scale + made.stream.offset) > 0.995


@pytest.mark.slow
def test_a_centred_run_can_be_measured_anew(tmp_path: Path) -> None:
    words = ["method=relu", *CENTRED]
    train(small_run(tmp_path, *words))
    again = small_run(tmp_path, *words, "evaluation.tokens=2048")
    [result] = measure(again)
    [fresh] = train(small_run(tmp_path / "fresh", *words, "evaluation.tokens=2048"))
    assert isinstance(result, Result) and isinstance(fresh, Result)
    for key, value in fresh.metrics.items():
        assert result.metrics[key] == pytest.approx(value, rel=1e-3), key


@pytest.mark.parametrize("method", ["topk", "relu"])
def test_centring_helps_where_the_mean_is_large(method: str, tmp_path: Path) -> None:
    """Activations whose mean is 30 times as long as their spread (arXiv 2605.31518)."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(96, 32)) / 32**0.5
    codes = generator.exponential(size=(20000, 96)) * (generator.random((20000, 96)) < 0.04)
    acts = codes @ features
    acts += 30 * acts.std(0).mean() * 32**0.5 * features[0] / np.linalg.norm(features[0])
    np.save(tmp_path / "acts.npy", acts.astype("float32"))
    words = [
        f"method={method}",
        "target_model=activations",
        f"target_model.path={tmp_path}/acts.npy",
    ]
    words += ["training.tokens=16384", "d_sae=128", "evaluation.ce_tokens=0"]
    outcomes = train(small_run(tmp_path, *words, "stream.centre=false")) + train(
        small_run(tmp_path, *words)
    )
    apart, centred = (o.metrics for o in outcomes if isinstance(o, Result))
    assert centred["fvu"] < 0.5 * apart["fvu"]
    assert centred["dead_frac"] < 0.3 * apart["dead_frac"]


# --- Real rows -----------------------------------------------------------------------------


class Numbered(Data):
    """Rows of BOS and then 1, 2, 3, ...: every id of the vocabulary but BOS, once."""

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        del split, tokenizer
        ids = np.arange(1, 4096, dtype=np.uint16).reshape(-1, 63)
        return Rows(np.pad(ids, ((0, 0), (1, 0)), constant_values=BOS))


def test_a_real_model_gives_each_token_once_and_never_the_bos() -> None:
    target = TransformerLens(
        Numbered(),
        torch.device("cpu"),
        model="embedded",
        hook="embed.hook_out",  # where an activation tells its token
        revision=None,
        dtype="float32",
        compatibility_mode=False,
        rows_per_forward=8,
    )
    made = stream(target, batch_tokens=91, chunk_tokens=819, calibration_tokens=819)
    table = target.passes.activations(torch.arange(4096)[:, None], [target.hook])[target.hook][:, 0]
    acts = torch.cat([made.chunk(i) for i in range(5)]) / made.scale
    nearest = torch.cdist(acts, table).argmin(1)
    assert torch.allclose(table[nearest], acts, atol=1e-5)
    assert sorted(nearest.tolist()) == list(range(1, 4096))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_embedded_rows_are_the_shipped_tokens_behind_a_bos(split: Split) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(MODEL)
    rows = every(Embedded(context_tokens=128).rows(split, tokenizer))
    ids, _ = load_tokens(split)
    assert (rows[:, 0] == BOS).all()
    flat = rows[:, 1:].flatten()
    assert torch.equal(flat, torch.from_numpy(ids.astype("int64"))[: len(flat)])
    assert 0 <= len(ids) - len(flat) < 127


def test_another_tokenizer_reads_the_same_documents() -> None:
    """Bytes as tokens, BOS last in the vocabulary: the documents come back whole and in order."""
    letters = {letter: i for i, letter in enumerate(sorted(ByteLevel.alphabet()))}
    bare = Tokenizer(BPE(vocab=letters, merges=[]))
    bare.pre_tokenizer = ByteLevel(add_prefix_space=False)
    bare.decoder = ByteLevelDecoder()
    other = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="<s>", eos_token="</s>")
    rows = every(Embedded(context_tokens=100).rows("held_out", other))
    bos: Any = other.convert_tokens_to_ids("<s>")
    assert rows.shape[1] == 100 and (rows[:, 0] == bos).all()
    flat = rows[:, 1:].flatten().numpy()
    starts = np.flatnonzero(flat == bos)
    ids, own_starts = load_tokens("held_out")
    shipped = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    texts = shipped.decode_batch([piece[1:].tolist() for piece in np.split(ids, own_starts[1:])])
    assert len(starts) == len(texts) and starts[0] == 0
    read = [bare.decode(piece[1:].tolist()) for piece in np.split(flat, starts[1:])]
    assert read[:-1] == texts[:-1]
    assert texts[-1].startswith(read[-1].rstrip("\ufffd")) and len(texts[-1]) - len(read[-1]) < 99
