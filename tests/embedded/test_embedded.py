"""The embedded target model and tokens: what ships, and the code that made it."""

import hashlib
import itertools
import json
import socket
from collections import Counter
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from sae_sweeps.embedded import BOS, LICENSE, MODEL, PROVENANCE, ROOT, TOKENS, corpus, load_tokens
from sae_sweeps.embedded.ngram import KneserNey
from sae_sweeps.embedded.training import CONTEXT, VOCAB, Recipe, make_rows, train

MAX_BYTES = 6_000_000
MAX_NATS = 3.7
MAX_SHARED_LINES = 0.7
"""Modules of one family share idioms; a copy would share nearly all."""

EVAL_ROWS = 129
"""16,383 tokens."""


@pytest.fixture(scope="module")
def provenance() -> dict[str, Any]:
    return json.loads(PROVENANCE.read_text())


@pytest.fixture(scope="module")
def texts() -> dict[corpus.Split, list[str]]:
    """The documents that the shipped ids decode to."""
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    decoded: dict[corpus.Split, list[str]] = {}
    for split in ("train", "held_out"):
        ids, starts = load_tokens(split)
        pieces = [piece[1:].tolist() for piece in np.split(ids, starts[1:])]
        decoded[split] = tokenizer.decode_batch(pieces, skip_special_tokens=False)
    return decoded


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse and record every attempt to reach the network."""
    attempts: list[object] = []

    def refuse(*arguments: object, **_: object) -> NoReturn:
        attempts.append(arguments)
        raise OSError("the test denies sockets")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.mark.slow
def test_bridge_loads_offline_and_beats_the_trigram(connections: list[object]) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    bridge = TransformerBridge.boot_transformers(str(MODEL), device="cpu", dtype=torch.float32)
    bridge.eval()
    assert connections == []
    assert bridge.tokenizer is not None
    assert bridge.tokenizer.bos_token_id == BOS

    held_out, _ = load_tokens("held_out")
    rows = make_rows(held_out)[:EVAL_ROWS]
    with torch.inference_mode():
        model_nats = bridge(rows, return_type="loss", loss_per_token=True).mean().item()
    trigram = KneserNey.fit(load_tokens("train")[0], VOCAB, order=3)
    predicted = held_out[: rows[:, 1:].numel()]
    trigram_nats = float(trigram.cross_entropy_nats(predicted, BOS).mean())
    assert model_nats <= MAX_NATS
    assert model_nats < trigram_nats


def test_recorded_figures_meet_the_acceptance(provenance: dict[str, Any]) -> None:
    nats = provenance["held_out_nats_per_token"]
    assert nats["model"] <= MAX_NATS
    assert nats["model"] < nats["trigram"] < nats["bigram"] < nats["unigram"] < np.log(VOCAB)


def test_files_match_their_recorded_hashes(provenance: dict[str, Any]) -> None:
    paths = [LICENSE, *MODEL.iterdir(), *TOKENS.iterdir()]
    actual = {
        path.relative_to(ROOT).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    assert actual == provenance["files"]


def test_files_are_small_licensed_and_name_no_machine() -> None:
    data = [LICENSE, PROVENANCE, *MODEL.iterdir(), *TOKENS.iterdir()]
    assert sum(path.stat().st_size for path in data) <= MAX_BYTES
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in LICENSE.read_text()
    settings_files = [PROVENANCE, *MODEL.glob("*config.json")]
    assert len(settings_files) >= 3
    for path in settings_files:
        assert not any(root in path.read_text() for root in ("/root", "/home", "/work", "/tmp"))


def test_no_document_is_in_both_splits(
    provenance: dict[str, Any], texts: dict[corpus.Split, list[str]]
) -> None:
    names = provenance["corpus"]["documents"]
    assert not set(names["train"]) & set(names["held_out"])
    assert not set(texts["train"]) & set(texts["held_out"])
    trained_lines = set[str]().union(*map(corpus.long_lines, texts["train"]))
    for text in texts["held_out"]:
        lines = corpus.long_lines(text)
        assert len(lines & trained_lines) <= MAX_SHARED_LINES * len(lines)
    share = len(load_tokens("held_out")[0]) / len(load_tokens("train")[0])
    assert 0.03 < share < 0.08


def test_tokens_decode_to_the_recorded_corpus(
    provenance: dict[str, Any], texts: dict[corpus.Split, list[str]]
) -> None:
    recorded = provenance["corpus"]
    lines: list[str] = []
    for split, decoded in texts.items():
        for name, text in zip(recorded["documents"][split], decoded, strict=True):
            lines.append(f"{hashlib.sha256(text.encode()).hexdigest()} {name}\n")
    assert hashlib.sha256("".join(sorted(lines)).encode()).hexdigest() == recorded["sha256"]


def test_robotparser_is_left_out(
    provenance: dict[str, Any], texts: dict[corpus.Split, list[str]]
) -> None:
    names = itertools.chain(*provenance["corpus"]["documents"].values())
    assert not any("robotparser" in name for name in names)
    everything = itertools.chain(*texts.values())
    assert not any("class RobotFileParser" in text for text in everything)


def test_tokenizer_round_trips_held_out_text(texts: dict[corpus.Split, list[str]]) -> None:
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert tokenizer.token_to_id("<|endoftext|>") == BOS
    assert tokenizer.get_vocab_size() == VOCAB
    ids, starts = load_tokens("held_out")
    assert starts[0] == 0
    encoded = [encoding.ids for encoding in tokenizer.encode_batch(texts["held_out"])]
    assert encoded == [piece[1:].tolist() for piece in np.split(ids, starts[1:])]


@pytest.mark.filterwarnings("ignore:.*slated for removal:DeprecationWarning")
def test_collected_documents_are_distinct() -> None:
    documents = corpus.collect()
    names = [document.name for document in documents]
    assert len({document.sha256 for document in documents}) == len(set(names)) == len(names)
    assert "lib/urllib/parse.py" in names
    assert "lib/urllib/robotparser.py" not in names


def naive_kneser_ney(ids: list[int], vocab: int, gram: tuple[int, ...]) -> float:
    """Interpolate from the uniform distribution upwards, counting with dictionaries."""
    grams = {n: [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)] for n in range(1, 5)}
    order, result = len(gram), 1 / vocab
    for n in range(1, order + 1):
        left_stripped = [longer[1:] for longer in set(grams[n + 1])]
        counts = Counter(grams[n] if n == order else left_stripped)
        once, twice = (list(counts.values()).count(times) for times in (1, 2))
        discount = once / (once + 2 * twice) if once and twice else 0.75
        context, word = gram[order - n : -1], gram[-1]
        after = {g[-1]: count for g, count in counts.items() if g[:-1] == context}
        if after:
            kept = max(after.get(word, 0) - discount, 0)
            result = (kept + discount * len(after) * result) / sum(after.values())
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_kneser_ney_equals_naive_reference_and_sums_to_one(data: st.DataObject) -> None:
    vocab, order = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 3))
    words = st.integers(0, vocab - 1)
    ids = data.draw(st.lists(words, min_size=order, max_size=60))
    grams = np.array(list(itertools.product(range(vocab), repeat=order)))
    actual = KneserNey.fit(np.array(ids), vocab, order).probabilities(grams)
    expected = [naive_kneser_ney(ids, vocab, tuple(gram)) for gram in grams.tolist()]
    np.testing.assert_allclose(actual, expected, rtol=1e-12)
    np.testing.assert_allclose(actual.reshape(-1, vocab).sum(axis=1), 1, rtol=1e-12)


def test_rows_open_with_bos_and_cover_the_stream() -> None:
    ids = np.arange(1, 300, dtype=np.uint16)
    rows = make_rows(ids)
    assert rows.shape == (2, CONTEXT)
    assert rows[:, 0].tolist() == [BOS, BOS]
    assert rows[:, 1:].flatten().tolist() == ids[: 2 * (CONTEXT - 1)].tolist()


@pytest.mark.slow
def test_training_repeats_with_its_seed_and_learns() -> None:
    ids = np.random.default_rng(0).integers(1, 20, size=6000).astype(np.uint16)
    rows = make_rows(ids)
    recipe = Recipe(tokens=8 * 2 * CONTEXT, batch_rows=2, eval_rows=4)
    (first, history), (second, _) = (train(ids, rows, recipe) for _ in range(2))
    other, _ = train(ids, rows, Recipe(tokens=2 * CONTEXT, seed=1, batch_rows=2, eval_rows=4))
    weights, again, different = (
        model.state_dict()["transformer.h.0.mlp.c_fc.weight"] for model in (first, second, other)
    )
    assert torch.equal(weights, again)
    assert not torch.equal(weights, different)
    assert history[-1]["held_out_subset_nats"] < history[0]["held_out_subset_nats"]
