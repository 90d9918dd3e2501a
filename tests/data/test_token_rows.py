"""Packing against ten naive lines, however it is batched, interrupted, shared or damaged."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import cache
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from sae_sweeps.data import token_cache
from sae_sweeps.data import token_rows as module
from sae_sweeps.data.token_rows import SPLITS, RowOptions, packed_rows
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Split
from sae_sweeps.system import interrupt
from sae_sweeps.system.tokenizers import special_ids
from tests.support.foreign import foreign, nothing
from tests.support.fork_server import environment
from tests.support.launches import Launch, the_launches

TEXTS = [f"def f{i}(x):\n    return x + {i * i}\n" * (i % 7) for i in range(120)]
Rows = dict[Split, list[list[int]]]


@cache
def tokenizer() -> Any:
    """BOS is 1 and EOS 0; text has neither."""
    return foreign(bos_token="<s>", eos_token="<pad>")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; nothing waits for a disk."""
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", nothing)
    return tmp_path / "cache" / "tokens"


def options(**changed: Any) -> RowOptions:
    given: dict[str, Any] = {
        **{"context_tokens": 16, "separator": "bos", "held_out_share": 0.3},
        **{"train_tokens": None, "held_out_tokens": None, "special_strings": False},
    }
    return RowOptions(**given | changed)


def pack(documents: Callable[[], Any], packing: RowOptions, using: Any = None) -> Rows:
    source = {"name": "these"}

    def of(split: Split) -> list[list[int]]:
        rows = packed_rows(split, using or tokenizer(), packing, source, documents)
        return rows.ids.tolist()

    return {split: of(split) for split in SPLITS}


def naive(documents: list[str], packing: RowOptions) -> Rows:
    """All of a split's ids in one list, cut into rows."""
    streams: dict[Split, list[int]] = {"train": [], "held_out": []}
    for text in filter(str.strip, documents):
        share = int(blake2b(text.encode(), digest_size=8).hexdigest(), 16) / 2**64
        ids = tokenizer().encode(text, add_special_tokens=False)
        ids = {"bos": [1, *ids], "eos": [*ids, 0], "none": ids}[packing.separator]
        streams["held_out" if share < packing.held_out_share else "train"] += ids
    width = packing.context_tokens - 1
    cut = {s: range(0, len(ids) - width + 1, width) for s, ids in streams.items()}
    return {s: [[1, *ids[i : i + width]] for i in cut[s]] for s, ids in streams.items()}


# --- The rows ------------------------------------------------------------------------------


class Killed(BaseException):
    """Ends a build in the middle."""


def killed_at(documents: list[str], at: int) -> Iterator[str]:
    for index, text in enumerate(documents):
        if index == at:
            raise Killed
        yield text


@st.composite
def packings(draw: st.DrawFn) -> RowOptions:
    budget = st.none() | st.integers(1, 40) | st.integers(1, 400)
    return RowOptions(
        context_tokens=draw(st.integers(3, 9)),
        separator=draw(st.sampled_from(("bos", "eos", "none"))),
        special_strings=draw(st.booleans()),
        held_out_share=draw(st.sampled_from((0.2, 0.5, 0.8))),
        train_tokens=draw(budget),
        held_out_tokens=draw(budget),
    )


WORDS = st.text("abc .\né☃", min_size=5, max_size=40)
DOCUMENTS = st.lists(WORDS | st.sampled_from(["", " \n"]), max_size=30) | st.lists(
    WORDS | st.sampled_from(["", " \n"]), min_size=12, max_size=30
)


@pytest.mark.parametrize("separator", ["bos", "eos", "none"])
@pytest.mark.parametrize("context_tokens", [3, 16, 17])
def test_rows_of_some_text_are_the_naive_ones(separator: str, context_tokens: int) -> None:
    packing = options(separator=separator, context_tokens=context_tokens)
    documents = ["", *TEXTS, " \n "]
    assert pack(lambda: documents, packing) == naive(documents, packing)


@settings(max_examples=150)
@given(
    documents=DOCUMENTS,
    packing=packings(),
    kills=st.lists(st.integers(0, 25), max_size=3),
    sizes=st.lists(st.sampled_from((1, 30, 10**6)), min_size=4, max_size=4),
)
def test_rows_are_the_naive_ones(
    documents: list[str], packing: RowOptions, kills: list[int], sizes: list[int]
) -> None:
    """Whatever the batches are, and wherever a build was ended, and under other batches."""
    wanted = naive(documents, packing)
    asked = {split: packing.rows_wanted(split) for split in SPLITS}
    enough = all(len(wanted[split]) >= max(asked[split] or 0, 1) for split in SPLITS)
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAE_SWEEPS_CACHE", folder)
        patch.setattr(module, "COMMIT_S", 0)
        for kill, size in zip(kills, sizes, strict=False):
            patch.setattr(module, "BATCH_CHARACTERS", size)
            with suppress(Killed, ConfigError):  # it may be done before, or never be
                pack(lambda kill=kill: killed_at(documents, kill), packing)
        patch.setattr(module, "BATCH_CHARACTERS", sizes[-1])
        if enough:
            cut: Rows = {split: wanted[split][: asked[split]] for split in SPLITS}
            assert pack(lambda: documents, packing) == cut
        else:
            with pytest.raises(ConfigError, match=r"^data") as refused:
                pack(lambda: documents, packing)
            assert "\n" not in str(refused.value)


def test_a_build_goes_on_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed is not encoded again."""
    monkeypatch.setattr(module, "COMMIT_S", 0)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1)
    with pytest.raises(Killed):
        pack(lambda: killed_at(TEXTS, 100), options())
    encoded: list[list[str]] = []
    encode = module._encode  # pyright: ignore[reportPrivateUsage]

    def counted(tokenizer: Any, texts: list[str], special: bool) -> Iterator[list[int]]:
        encoded.append(texts)
        return encode(tokenizer, texts, special)

    monkeypatch.setattr(module, "_encode", counted)
    assert pack(lambda: TEXTS, options()) == naive(TEXTS, options())
    assert [text for texts in encoded for text in texts] == [t for t in TEXTS[100:] if t]


@pytest.mark.parametrize("state", [nullcontext, interrupt.deferred])
def test_a_signal_ends_a_build(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch, state: Callable[[], Any]
) -> None:
    """At once, or where signals are only looked at, after the batch."""

    def documents() -> Iterator[str]:
        yield from TEXTS[:50]
        os.kill(os.getpid(), signal.SIGTERM)
        yield from TEXTS[50:]

    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1)
    with interrupt.listening(), state(), pytest.raises(interrupt.Interrupted):
        pack(documents, options())
    assert not list(cache_folder.glob("*/manifest.json"))
    assert pack(lambda: TEXTS, options()) == naive(TEXTS, options())


def test_long_documents_are_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces end with a line; no character is lost between them."""
    monkeypatch.setattr(module, "PIECE_CHARACTERS", 40)
    pieces = module._pieces  # pyright: ignore[reportPrivateUsage]
    for text in (*TEXTS, "x" * 100, "x" * 39 + "\n" + "x" * 41, "\n" * 81):
        assert "".join(pieces(text)) == text
        assert all(0 < len(piece) <= 40 for piece in pieces(text)) or not text
    assert list(pieces("ab\n" * 20)) == ["ab\n" * 13, "ab\n" * 7]
    encoded = list(module._encode(tokenizer(), TEXTS, False))  # pyright: ignore[reportPrivateUsage]
    for text, ids in zip(TEXTS, encoded, strict=True):
        each = [tokenizer().encode(piece, add_special_tokens=False) for piece in pieces(text)]
        assert ids == [token for some in each for token in some]
        assert tokenizer().decode(ids) == text


def test_a_special_tokens_name_in_a_document_is_text_unless_asked_for() -> None:
    """Documents quote such names; only what stands between documents is no text."""
    documents = [f"{text} <s> and <pad>" for text in TEXTS if text.strip()]
    as_text, as_tokens = (
        [token for rows in pack(lambda: documents, options(**given)).values() for token in rows]
        for given in ({"separator": "none"}, {"separator": "none", "special_strings": True})
    )
    assert not {0, 1} & {token for _, *row in as_text for token in row}
    text = tokenizer().decode([token for _, *row in as_text for token in row])
    assert text.count("<s>") > 0.9 * len(documents)
    assert {0, 1} <= {token for _, *row in as_tokens for token in row}


@pytest.mark.parametrize("special_strings", [False, True])
def test_rows_packed_before_there_was_a_choice_are_those_with_special_strings(
    special_strings: bool, cache_folder: Path
) -> None:
    node: dict[str, Any] = vars(options(special_strings=True)) | {"path": "somewhere"}
    pack(lambda: TEXTS, options(special_strings=True))
    (manifest,) = cache_folder.glob("*/manifest.json")
    assert "special_strings" not in json.loads(manifest.read_text())["packing"]
    node["special_strings"] = special_strings
    assert token_cache.packed({"name": "these"}, node) is special_strings


@pytest.mark.parametrize(
    ("special", "expected"),
    [
        ({"bos_token": "<s>"}, [1]),
        ({"eos_token": "<s>", "pad_token": "<pad>"}, [0, 1]),
        ({"bos_token": "<s>", "unk_token": "<pad>"}, [1]),  # what it cannot spell is text
        ({"bos_token": "<s>", "unk_token": "<s>", "cls_token": "<pad>"}, [0, 1]),
        ({"eos_token": "<s>", "extra_special_tokens": ["<pad>"]}, [0, 1]),
    ],
)
def test_special_ids_are_those_of_no_text(special: dict[str, Any], expected: list[int]) -> None:
    assert special_ids(foreign(**special)) == expected


@pytest.mark.parametrize(("words", "dtype"), [(2**16, np.uint16), (2**16 + 1, np.uint32)])
def test_ids_have_the_smallest_type_that_holds_them(words: int, dtype: type) -> None:
    bare = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w0"))
    bare.pre_tokenizer = WhitespaceSplit()  # pyright: ignore
    using = PreTrainedTokenizerFast(tokenizer_object=bare, bos_token="w1")
    documents = [f"w{i} w{words - 1}" for i in range(2, 40)]
    rows = packed_rows("train", using, options(context_tokens=4), {}, lambda: documents)
    assert rows.ids.dtype == dtype and rows.ids.max() == words - 1
    assert isinstance(rows.ids, np.memmap)


@pytest.mark.parametrize("separator", ["bos", "eos"])
def test_bos_and_eos_stand_in_for_each_other(separator: Literal["bos", "eos"]) -> None:
    packing = options(separator=separator)
    rows = [
        pack(lambda: TEXTS, packing, foreign(**{name: "<s>"}))
        for name in ("bos_token", "eos_token")
    ]
    assert rows[0] == rows[1]
    flat = [token for row in rows[0]["train"] for token in row[1:]]
    assert flat.count(1) > 10 and (flat[0] == 1) == (separator == "bos")
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        pack(lambda: TEXTS, packing, foreign())


def test_what_has_too_few_tokens_names_both_numbers() -> None:
    have = len(naive(TEXTS, options())["train"]) * 15
    assert pack(lambda: TEXTS, options(train_tokens=have)) == naive(TEXTS, options())
    with pytest.raises(ConfigError) as refused:
        pack(lambda: TEXTS, options(train_tokens=have + 1))
    words = f"data.train_tokens is {have + 1}: the data hold {have} such tokens"
    assert str(refused.value).startswith(words)
    with pytest.raises(ConfigError, match="its 3 documents hold no text"):
        pack(lambda: ["", " \n", ""], options(separator="eos"))
    with pytest.raises(ConfigError, match=r"1 documents fill no held_out row .* which is 16"):
        pack(lambda: ["a long document " * 9], options(held_out_share=0.01))
    with pytest.raises(ConfigError, match=r"fill no train row"):
        pack(lambda: ["a long document " * 9], options(held_out_share=0.99))


# --- The cache -----------------------------------------------------------------------------


def test_what_is_packed_is_not_asked_for_again(cache_folder: Path) -> None:
    first = pack(lambda: TEXTS, options())
    assert pack(lambda: killed_at(TEXTS, 0), options()) == first
    [manifest] = cache_folder.glob("*/manifest.json")
    assert {path.name for path in manifest.parent.iterdir()} == {
        *("manifest.json", "train.npy", "held_out.npy")
    }
    told = json.loads(manifest.read_text())
    assert told["documents"] == 120 and told["with_text"] == sum(map(bool, TEXTS))
    for split in SPLITS:
        assert told["splits"][split]["rows"] == len(first[split])
        assert np.load(manifest.parent / f"{split}.npy").tolist() == first[split]


def test_all_that_rules_the_rows_is_in_the_key(cache_folder: Path) -> None:
    changes: list[dict[str, Any]] = [
        *({"separator": "eos"}, {"context_tokens": 17}, {"held_out_share": 0.31}),
        *({"train_tokens": 90}, {"held_out_tokens": 90}, {}),
    ]
    for change in changes:
        pack(lambda: TEXTS, options(**change))
    pack(lambda: TEXTS, options(), foreign(bos_token="<pad>", eos_token="<s>"))
    packed_rows("train", tokenizer(), options(), {"name": "others"}, lambda: TEXTS)
    assert len(list(cache_folder.glob("*/manifest.json"))) == len(changes) + 2


def test_what_others_do_with_a_tokenizer_changes_no_key() -> None:
    using = foreign(bos_token="<s>", pad_token="<pad>")
    before = pack(lambda: TEXTS, options(), using)
    using(TEXTS, truncation=True, max_length=8, padding="max_length")
    assert pack(lambda: killed_at(TEXTS, 0), options(), using) == before


def flip(folder: Path) -> None:
    path = folder / "train.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def shorten(folder: Path) -> None:
    os.truncate(folder / "held_out.npy", 200)


def remove(folder: Path) -> None:
    (folder / "held_out.npy").unlink()


def tear(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text()[:100])


def empty(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


def forget_to_tidy(folder: Path) -> None:
    """A process died after the manifest, and then the disk did harm."""
    state = {"rows": 1, "rest": [], "bytes": 200}
    progress = {"documents": 120, "texts": 100, "train": state, "held_out": state}
    (folder / "progress.json").write_text(json.dumps(progress))
    flip(folder)


@pytest.mark.parametrize("harm", [flip, shorten, remove, tear, empty, forget_to_tidy])
def test_a_damaged_matrix_is_packed_anew(cache_folder: Path, harm: Callable[[Path], None]) -> None:
    before = pack(lambda: TEXTS, options())
    [folder] = (path.parent for path in cache_folder.glob("*/manifest.json"))
    harm(folder)
    assert pack(lambda: TEXTS, options()) == before
    assert pack(lambda: killed_at(TEXTS, 0), options()) == before


@pytest.mark.parametrize("name", ["train.npy", "progress.json"])
def test_progress_that_cannot_be_is_not_gone_on_with(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module, "COMMIT_S", 0)
    monkeypatch.setattr(module, "BATCH_CHARACTERS", 1)
    with pytest.raises(Killed):
        pack(lambda: killed_at(TEXTS, 100), options())
    [harmed] = cache_folder.glob(f"*/{name}")
    os.truncate(harmed, 150)
    assert pack(lambda: TEXTS, options()) == naive(TEXTS, options())


def test_two_at_once_pack_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, builds = threading.Event(), list[str]()

    def heard(text: str, *_: object) -> None:
        if "waits" in text:
            begun.set()

    monkeypatch.setattr(token_cache, "WAIT_S", 0.05)
    monkeypatch.setattr(token_cache.log, "info", heard)

    def documents() -> Iterator[str]:
        builds.append("one")
        assert begun.wait(timeout=30)  # the other has seen the lock
        yield from TEXTS

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(pack, documents, options()) for _ in range(2)]
    assert [future.result() for future in both] == [naive(TEXTS, options())] * 2
    assert builds == ["one"]


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match=r"cannot be written .*SAE_SWEEPS_CACHE"):
        pack(lambda: TEXTS, options())


def test_the_cache_lies_where_users_say(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAE_SWEEPS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    assert token_cache.root() == Path("/home/me/.cache/sae_sweeps/tokens")
    monkeypatch.setenv("XDG_CACHE_HOME", "/users")
    assert token_cache.root() == Path("/users/sae_sweeps/tokens")
    monkeypatch.setenv("SAE_SWEEPS_CACHE", "~/own")
    assert token_cache.root() == Path("/home/me/own/tokens")


# --- Processes -----------------------------------------------------------------------------


def start(home: Path, place: str, threads: int, batch: int, pause: float) -> Launch:
    """Pack a folder in a process of its own."""
    env = environment() | {
        **{"SAE_SWEEPS_CACHE": str(home / place), "RAYON_NUM_THREADS": str(threads)},
        **{"TOKENIZERS_PARALLELISM": "true"},
    }
    words, at = (str(home / "texts"), str(pause)), module.__name__
    patches = {f"{at}:BATCH_CHARACTERS": batch, f"{at}:COMMIT_S": 0}
    return the_launches().start(
        home, *words, main="tests.support.packing", env=env, patches=patches
    )


def packed(folder: Path, place: str) -> dict[str, Any]:
    [manifest] = (folder / place / "tokens").glob("*/manifest.json")
    return json.loads(manifest.read_text())


@pytest.mark.slow
@pytest.mark.xdist_group("launches")
def test_threads_kills_and_company_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for index, text in enumerate(TEXTS):
        (tmp_path / "texts" / f"{index:03d}.txt").write_text(text * 20)
    for place, threads, batch in (("one", 1, 10**6), ("two", 2, 1000)):
        assert start(tmp_path, place, threads, batch, 0).wait() == 0
    for _ in range(2):
        launch = start(tmp_path, "killed", 2, 1, 0.02)
        progress = wait_for_documents(tmp_path / "killed", launch)
        launch.send(signal.SIGKILL)
        launch.wait()
        assert 0 < progress < len(TEXTS)
    both = [start(tmp_path, "killed", 2, 1, 0.02) for _ in range(2)]
    assert [launch.wait() for launch in both] == [0, 0], [launch.err for launch in both]
    assert sum("packs tokens from document" in launch.err for launch in both) == 1
    assert packed(tmp_path, "one") == packed(tmp_path, "two") == packed(tmp_path, "killed")


def wait_for_documents(place: Path, launch: Launch) -> int:
    """Wait until ten documents more than at first are committed; the number there are."""
    deadline, first = time.monotonic() + 300, None
    while time.monotonic() < deadline and not launch.ended():
        for path in place.glob("tokens/*/progress.json"):
            documents = (token_cache.read(path) or {}).get("documents", 0)
            first = documents if first is None else first
            if documents >= first + 10:
                return documents
        time.sleep(0.01)
    raise AssertionError(launch.err)
