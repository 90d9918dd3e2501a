"""Positions that are no text: in no scale, no batch, no figure, whatever leaves them out."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sae_sweeps.config.options import StreamOptions
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Splice, SplicedLosses, Split, TargetModel
from sae_sweeps.record.identity import source
from sae_sweeps.record.result import Result
from sae_sweeps.stream.live import require_held_out
from tests.support.small import small_run, train
from tests.support.streams import Alone

WIDTH, D_IN, VOCABULARY = 6, 3, 7
ROWS: dict[Split, int] = {"train": 25, "held_out": 12}
Place = tuple[int, int]


class Marked(TargetModel):
    """Rows some of whose tokens are special; those, and only those, are ten thousand long."""

    d_in, tokens_per_row, has_loss = D_IN, WIDTH, True
    device = torch.device("cpu")

    def __init__(self, share: float = 0.3, seed: int = 0) -> None:
        self.description = {}
        draw = torch.Generator().manual_seed(seed)
        self.marks = {
            split: torch.rand(n, WIDTH, generator=draw) < share for split, n in ROWS.items()
        }
        self.table = {
            split: torch.randn(n, WIDTH, D_IN, generator=draw) + 1 for split, n in ROWS.items()
        }
        for split, marks in self.marks.items():
            self.table[split][marks] = 1e4
        self.head = torch.randn(D_IN, VOCABULARY, generator=draw)

    def row_count(self, split: Split) -> int:
        return ROWS[split]

    def special(self, split: Split, rows: Tensor) -> Tensor:
        return self.marks[split][rows]

    def activations(self, split: Split, rows: Tensor) -> Tensor:
        return self.table[split][rows].flatten(0, 1)

    def spliced_losses(self, split: Split, rows: Tensor, splice: Splice) -> SplicedLosses:
        """In parts of five rows; every token predicts, but the last of a row."""
        parts: list[tuple[Tensor, Tensor]] = []
        for some in rows.split(5):
            acts = self.table[split][some]
            clean, own = (
                (a @ self.head).log_softmax(-1)[:, :-1] for a in (acts, splice(acts.clone()))
            )
            ce = F.nll_loss(own.flatten(0, 1), clean.argmax(-1).flatten(), reduction="none")
            parts.append((ce.view(clean.shape[:2]), (clean.exp() * (clean - own)).sum(-1)))
        return SplicedLosses(*(torch.cat(losses) for losses in zip(*parts, strict=True)))


def options(**changed: Any) -> StreamOptions:
    given: dict[str, Any] = {
        **{"batch_tokens": 10, "chunk_tokens": 40, "seed": 0, "calibration_tokens": 50},
        **{"repeat": True, "centre": False},
        **{"special_tokens": False, "skip_first": 0, "max_norm": None},
    }
    return StreamOptions(**given | changed)


def places(target: Marked, made: Alone, acts: Tensor, split: Split) -> list[Place]:
    """The row and position of each scaled activation, by its values."""
    table = target.table[split].flatten(0, 1)
    found = (made.unscaled(acts)[:, None] - table).abs().sum(-1).argmin(1)
    return [(int(place) // WIDTH, int(place) % WIDTH) for place in found]


def used(target: Marked, given: StreamOptions, split: Split) -> list[Place]:
    """Naively, token by token."""
    return [
        (row, position)
        for row in range(ROWS[split])
        for position in range(WIDTH)
        if position >= given.skip_first
        and (given.special_tokens or not target.marks[split][row, position])
    ]


@settings(deadline=None, max_examples=80)
@given(
    share=st.sampled_from((0.0, 0.05, 0.5, 0.9)),
    skip=st.integers(0, 3),
    special=st.booleans(),
    batch=st.integers(2, 12),
    batches=st.integers(1, 4),
    chunks=st.integers(1, 20),
    seed=st.integers(0, 9),
)
@example(share=0.9, skip=2, special=False, batch=12, batches=4, chunks=20, seed=1)
def test_every_used_token_comes_once_an_epoch_and_no_other_ever(
    share: float, skip: int, special: bool, batch: int, batches: int, chunks: int, seed: int
) -> None:
    target = Marked(share, seed)
    target.table["train"][target.marks["train"]] = torch.randn(D_IN)  # told apart by marks alone
    target.table["train"] += torch.randn(25, WIDTH, D_IN) * 1e-3
    given = options(
        batch_tokens=batch,
        chunk_tokens=batch * batches,
        seed=seed,
        special_tokens=special,
        skip_first=skip,
    )
    expected = used(target, given, "train")
    if not expected or not used(target, given, "held_out"):
        with pytest.raises(ConfigError, match="none is left"):
            Alone(target, given, 1)
        return
    made = Alone(target, given, 1)
    assert made.order.size("train") == len(expected)
    seen = Counter(
        place
        for index in range(chunks)
        for place in places(target, made, made.chunk(index), "train")
    )
    epochs, over = divmod(batch * batches * chunks, len(expected))
    assert set(seen) <= set(expected)
    counts = Counter(seen.values()) + Counter({0: len(expected) - len(seen)})
    assert counts == +Counter({epochs: len(expected) - over, epochs + 1: over})


def test_scale_mean_and_held_out_tokens_know_nothing_of_special_tokens() -> None:
    target = Marked()
    given = options(calibration_tokens=len(used(target, options(), "train")))
    count = len(used(target, given, "held_out"))
    made = Alone(target, given, count)
    text = target.table["train"][~target.marks["train"]]
    assert made.scale == pytest.approx(1 / text.pow(2).sum(1).mean().sqrt().item(), rel=1e-5)
    torch.testing.assert_close(made.raw_mean, text.mean(0))
    assert sorted(places(target, made, made.held_out, "held_out")) == used(
        target, given, "held_out"
    )
    # Behind the last token nothing is passed over.
    all_held_out = ROWS["held_out"] * WIDTH
    assert 0 < made.left_out <= all_held_out - count
    assert Alone(target, options(special_tokens=True), 40).left_out == 0
    assert Alone(target, options(special_tokens=True), 40).scale < made.scale / 1000


def test_tokens_of_many_times_the_median_norm_are_left_out_and_chunks_stay_full() -> None:
    target = Marked(share=0.1)
    given = options(special_tokens=True, max_norm=20.0, calibration_tokens=150)
    made = Alone(target, given, 60)
    text = target.table["train"][~target.marks["train"]]
    assert made.scale == pytest.approx(1 / text.pow(2).sum(1).mean().sqrt().item(), rel=1e-5)
    text_of_held_out = set(used(target, options(), "held_out"))
    assert set(places(target, made, made.held_out, "held_out")) <= text_of_held_out
    assert len(made.held_out) + made.left_out == 60 and made.left_out > 0
    for index in range(4):
        chunk = made.chunk(index)
        seen = Counter(places(target, made, chunk, "train"))
        assert len(chunk) == 40 and not any(target.marks["train"][place] for place in seen)
        assert set(seen.values()) <= {1, 2}
    assert Alone(target, options(special_tokens=True, max_norm=1e6), 60).left_out == 0


@pytest.mark.parametrize(
    "given", [{}, {"special_tokens": True, "max_norm": 20.0}, {"skip_first": 2}]
)
def test_splicing_replaces_used_tokens_alone_and_its_figures_are_of_their_predictions(
    given: dict[str, Any],
) -> None:
    target = Marked(share=0.2)
    made = Alone(target, options(**given), 30)
    rows = torch.tensor([7, 0, 3, 11, 5, 4, 2])
    shown: list[Tensor] = []

    def halved(acts: Tensor) -> Tensor:
        shown.append(acts)
        return acts / 2

    losses = made.spliced_losses("held_out", rows, halved)
    expected_acts, ce, kl = list[Tensor](), list[Tensor](), list[Tensor]()
    for row in rows.tolist():
        for position in range(WIDTH):
            acts = target.table["held_out"][row, position]
            text = not target.marks["held_out"][row, position]
            if not text or position < made.given.skip_first:
                continue
            expected_acts.append(acts)
            if position < WIDTH - 1:
                clean, own = ((a @ target.head).log_softmax(-1) for a in (acts, acts / 2))
                ce.append(-own[clean.argmax()])
                kl.append((clean.exp() * (clean - own)).sum())
    assert torch.cat(shown).equal(torch.stack(expected_acts))
    torch.testing.assert_close(losses.ce, torch.stack(ce))
    torch.testing.assert_close(losses.kl, torch.stack(kl))


@pytest.mark.parametrize(
    "given", [{}, {"special_tokens": True, "max_norm": 20.0}, {"skip_first": 2}]
)
def test_contexts_are_of_all_rows_once_and_of_used_tokens(given: dict[str, Any]) -> None:
    target = Marked(share=0.2)
    made = Alone(target, options(**given), 30)
    total = made.order.size("train")
    parts = [made.contexts(start, 13) for start in range(0, total - total % 13, 13)]
    seen = Counter(p for x, _ in parts for p in places(target, made, x, "train"))
    expected = {p for p in used(target, made.given, "train") if not target.marks["train"][p]}
    assert set(seen) <= expected and set(seen.values()) == {1}
    assert len(seen) > len(expected) - 13 - WIDTH  # what the last call would begin with
    x, divergence = parts[2]
    assert divergence(x).item() == pytest.approx(0, abs=1e-6)
    assert divergence(x * 0.5).item() > 1e-3


def test_data_that_do_not_suffice_tell_what_is_left_out_of_them() -> None:
    target = Marked()
    made = Alone(target, options(repeat=False), 10)
    text = len(used(target, options(), "train"))
    made.require(text)
    told = f"hold {text} training tokens, {25 * WIDTH - text} special tokens and first positions"
    with pytest.raises(ConfigError, match=told):
        made.require(text + 1)
    with pytest.raises(ConfigError, match=r"held-out tokens, \d+ special tokens"):
        require_held_out(made.order, 12 * WIDTH)
    plain = Alone(target, options(repeat=False, special_tokens=True), 10)
    with pytest.raises(ConfigError, match="hold 150 training tokens; set"):
        plain.require(151)


def test_rows_without_any_text_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"stream\.skip_first is 6: of 25 train rows of 6 tokens"):
        Alone(Marked(), options(skip_first=6), 10)


def test_runs_on_other_tokens_cannot_be_compared(tmp_path: Path) -> None:
    sources = [
        source(small_run(tmp_path, f"stream.{words}").config)
        for words in ("seed=0", "seed=1", "special_tokens=true", "skip_first=1", "max_norm=9")
    ]
    assert sources[0] == sources[1] and len(set(sources)) == 4


# --- A model whose separators are sinks ------------------------------------------------------


@pytest.fixture(scope="module")
def sinks(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A model whose BOS has several times the norm of other tokens, and text of short documents."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    import sae_sweeps.embedded as embedded

    place = tmp_path_factory.mktemp("sinks")
    tokenizer = AutoTokenizer.from_pretrained(embedded.MODEL)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 128}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), initializer_range=0.2, **shape))
    weights = model.transformer.wte.weight.data
    weights[tokenizer.bos_token_id] *= 60
    model.save_pretrained(place / "model")
    tokenizer.save_pretrained(place / "model")
    lines = (" ".join(f"word{(i * 7 + j * j) % 97}" for j in range(12)) for i in range(3000))
    (place / "text.txt").write_text("\n".join(lines))
    return str(place / "model"), str(place / "text.txt")


@pytest.mark.slow
def test_separators_of_a_model_change_no_figure(
    sinks: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With separators between documents an SAE is as good as without, unless it sees them."""
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "cache"))
    model, text = sinks

    def fvu(*words: str) -> Result:
        common = (
            *("target_model=transformer_lens", f"target_model.model={model}", "data=text"),
            *("target_model.hook=blocks.1.hook_resid_post", f"data.path={text}"),
            *("data.sample_by=line", "data.held_out_share=0.3", "data.context_tokens=64"),
            *("method=topk", "k=4", "d_sae=64", "training.tokens=4096", "evaluation.tokens=512"),
            *("stream.batch_tokens=256", "evaluation.ce_tokens=256"),
        )
        (result,) = train(small_run(tmp_path, *common, *words))
        assert isinstance(result, Result)
        return result

    plain, apart = fvu("data.separator=none"), fvu("data.separator=bos")
    seen = fvu("data.separator=bos", "stream.special_tokens=true")
    assert apart.metrics["fvu"] == pytest.approx(plain.metrics["fvu"], rel=0.05)
    assert seen.metrics["fvu"] < 0.8 * plain.metrics["fvu"]  # a few huge tokens are all variance
    assert plain.evaluation["left_out_tokens"] == 0 < apart.evaluation["left_out_tokens"]
    assert apart.evaluation["tokens"] == 512
