"""Data: the embedded text in any tokenizer's ids, the user's own files, data sets of the hub."""

import csv
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NoReturn, cast

import datasets
import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import config
from huggingface_hub import constants
from transformers import AutoTokenizer

from sae_sweeps.data import documents
from sae_sweeps.data.embedded import Embedded
from sae_sweeps.data.hub import Hub
from sae_sweeps.data.text import Text
from sae_sweeps.embedded import MODEL, load_tokens
from sae_sweeps.errors import ConfigError
from tests.support.commands import Trainer, refusal, run, trainer
from tests.support.foreign import foreign, nothing
from tests.support.small import every

__all__ = ["run", "trainer"]  # fixtures

CONTEXT = 64
TEXTS = [f"Document {i}, été, \u2603:\n\n" + "a line,\nand more\n" * (i % 9) for i in range(60)]


@pytest.fixture(scope="module")
def own() -> Any:
    return cast(Any, AutoTokenizer.from_pretrained(MODEL))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_embedded_model_reads_the_ids_that_ship(
    own: Any, split: Literal["train", "held_out"]
) -> None:
    rows = every(Embedded(context_tokens=CONTEXT).rows(split, own))
    ids, _ = load_tokens(split)
    assert rows.shape == (len(ids) // (CONTEXT - 1), CONTEXT)
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].flatten().tolist() == ids[: rows[:, 1:].numel()].tolist()


def test_another_tokenizer_reads_the_same_text(own: Any) -> None:
    other = foreign(bos_token="<s>", pad_token="<pad>")
    rows = every(Embedded(context_tokens=CONTEXT).rows("held_out", other))
    bos = other.bos_token_id
    assert bos == 1 and (rows[:, 0] == bos).all()
    stream = rows[:, 1:].flatten()
    ids, starts = load_tokens("held_out")
    documents = torch.tensor_split(stream, (stream == bos).nonzero().squeeze(1))[1:]
    assert len(documents) == len(starts)
    ends = [*starts[1:].tolist(), len(ids)]
    for document, start, end in list(zip(documents, starts.tolist(), ends, strict=True))[:-1]:
        assert other.decode(document[1:].tolist()) == own.decode(ids[start + 1 : end].tolist())


def test_eos_stands_in_for_bos() -> None:
    other = foreign(eos_token="<s>")
    rows = every(Embedded(context_tokens=CONTEXT).rows("held_out", other))
    assert (rows[:, 0] == 1).all()


def test_a_tokenizer_without_either_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        Embedded(context_tokens=CONTEXT).rows("held_out", foreign())


# --- The user's own files ------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for texts; caches are empty, and the network is not to be asked for anything."""

    def refuse(*arguments: object, **_: object) -> NoReturn:
        raise AssertionError(f"the network was asked for {arguments}")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(os, "fsync", nothing)
    (tmp_path / "texts").mkdir()
    return tmp_path / "texts"


def write_txt(place: Path) -> None:
    for index, text in enumerate(TEXTS):
        name = f"{index:02d}" + (".md" if index % 2 else " [a]*.txt")
        path = place / f"part{index // 20}" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def write_jsonl(place: Path) -> None:
    rows = [json.dumps({"n": i, "text": text}) for i, text in enumerate(TEXTS)]
    (place / "a.jsonl").write_text("\n".join(rows[:25]) + "\n")
    (place / "b.jsonl").write_text("\n".join(rows[25:]) + "\n")


def write_json(place: Path) -> None:
    (place / "a.json").write_text(json.dumps([{"text": text} for text in TEXTS]))


def write_csv(place: Path) -> None:
    with (place / "a.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["n", "text"], *enumerate(TEXTS)])


def write_parquet(place: Path) -> None:
    for name, texts in (("a", TEXTS[:7]), ("b", [None, *TEXTS[7:], ""])):
        table = pyarrow.table({"text": texts, "n": range(len(texts))})
        pyarrow.parquet.write_table(table, place / f"{name}.parquet", row_group_size=5)


def write_several(place: Path) -> None:
    """Two kinds of files, in order of their names."""
    write_jsonl(place)
    (place / "b.jsonl").unlink()
    for index, text in enumerate(TEXTS[25:]):
        (place / f"b{index:02d}.md").write_text(text, encoding="utf-8")


def options(**changed: Any) -> dict[str, Any]:
    given = {
        **{"column": "text", "context_tokens": 16, "separator": "bos"},
        **{"held_out_share": 0.3, "train_tokens": None, "held_out_tokens": None},
        "special_strings": False,
    }
    return given | changed


def text_rows(path: Path | str, tokenizer: Any, **changed: Any) -> list[list[list[int]]]:
    given = options(path=str(path), sample_by="document") | changed
    splits: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")
    return [every(Text(**given).rows(split, tokenizer)).tolist() for split in splits]


def decoded(rows: list[list[list[int]]], tokenizer: Any) -> list[list[str]]:
    """The documents of each split as they come back from its rows."""
    streams = [[token for row in split for token in row[1:]] for split in rows]
    return [tokenizer.decode(ids).split("<|endoftext|>")[1:] for ids in streams]


WRITERS = [write_txt, write_jsonl, write_json, write_csv, write_parquet, write_several]


@pytest.mark.parametrize("write", WRITERS)
def test_documents_come_back_from_their_rows(
    place: Path, own: Any, write: Callable[[Path], None]
) -> None:
    write(place)
    train, held_out = decoded(text_rows(place, own), own)
    places = [[TEXTS.index(text) for text in split[:-1]] for split in (train, held_out)]
    assert all(split == sorted(split) for split in places)
    assert not {*places[0]} & {*places[1]} and len(places[0]) + len(places[1]) >= 57
    assert len(places[1]) >= 8
    for last in (train[-1], held_out[-1]):
        assert any(text.startswith(last.rstrip("\ufffd")) for text in TEXTS)


def test_a_file_a_folder_and_a_pattern(place: Path, own: Any) -> None:
    write_txt(place)
    (place / "notes.pdf").write_text("not text")
    (place / ".hidden").mkdir()
    (place / ".hidden" / "a.txt").write_text("hidden " * 99)
    names = [path.name for path in documents.text_files(str(place))]
    assert len(names) == 60 and names == sorted(names)
    for pattern in ("*/*", "**/*.[mt]*", "part?/*"):
        assert documents.text_files(f"{place}/{pattern}") == documents.text_files(str(place))
    assert len(documents.text_files(f"{place}/part1/*.md")) == 10
    [only] = documents.text_files(str(place / "part0" / "00 [a]*.txt"))
    assert only.name == "00 [a]*.txt"
    assert text_rows(f"{place}/*/*", own) == text_rows(place, own)


def test_what_is_a_document_in_a_text_file_can_be_chosen(place: Path, own: Any) -> None:
    (place / "a.txt").write_text("".join(f"line {i}\n" + "\n" * (i % 3 == 0) for i in range(99)))
    lines = decoded(text_rows(place, own, sample_by="line"), own)
    assert {"line 1", "line 50"} < {*lines[0], *lines[1]}
    paragraphs = decoded(text_rows(place, own, sample_by="paragraph"), own)
    assert "line 1\nline 2\nline 3" in {*paragraphs[0], *paragraphs[1]}
    with pytest.raises(ConfigError, match="1 documents fill no"):
        text_rows(place, own)


def test_changed_files_are_packed_anew(place: Path, own: Any) -> None:
    write_jsonl(place)
    before = text_rows(place, own)
    path = place / "a.jsonl"
    path.write_text(path.read_text().replace("Document", "document"))
    os.utime(path, ns=(1, 1))  # even if it was too soon for the clock
    assert text_rows(place, own) != before


def spoil(place: Path, content: str | bytes, name: str = "a.jsonl") -> str:
    raw = content.encode() if isinstance(content, str) else content
    (place / name).write_bytes(raw)
    return str(place)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.jsonl",
            '{"txt": "a", "n": 1}\n',
            "data.column is 'text', expected one of 'txt', 'n'. Did",
        ),
        ("a.jsonl", '{"text": 3}\n', "data.column is 'text': it holds int, not text."),
        ("a.jsonl", '{"text": ""}\n{"text": null}\n', "data: its 2 documents hold no text."),
        ("a.jsonl", "", "data: its 0 documents hold no text."),
        ("a.txt", "", "documents hold no text."),
        ("a.jsonl", '{"text": "a"}\n{"te', "data.path is "),
        ("a.txt", b"\xff\xfe\x00", "it cannot be read ('utf-8' codec"),
        ("a.parquet", "no parquet", "it cannot be read ("),
    ],
)
def test_files_without_text_are_refused_in_one_line(
    place: Path, own: Any, name: str, content: str | bytes, expected: str
) -> None:
    path = spoil(place, content, name)
    with pytest.raises(ConfigError) as refused:
        text_rows(path, own)
    assert expected in str(refused.value) and "\n" not in str(refused.value)


BAD = {
    "data.path must be given": ["data=text"],
    "data.path is './none': there is no such file": ["data=text", "data.path=./none"],
    "data.path is '.': it holds no .txt, .md,": ["data=text", "data.path=."],
    "data.path is '*.txt': there is no such file": ["data=text", "data.path='*.txt'"],
    "data.path is 'a.doc', expected .txt, .md,": ["data=text", "data.path=a.doc"],
    "data.path is '~nosuch/x': it cannot be looked for (": ["data=text", "data.path='~nosuch/x'"],
    "data.sample_by is 'word', expected": ["data=text", "data.path=.", "data.sample_by=word"],
    "data.held_out_share is 1, expected more": [
        "data=text",
        "data.path=.",
        "data.held_out_share=1",
    ],
    "data.held_out_share is 0, expected": ["data=text", "data.path=.", "data.held_out_share=0"],
    "data.train_tokens is 0, expected at": ["data=c4", "data.train_tokens=0"],
    "training.tokens is 327680, expected at most data.train_tokens, which is 9; or set": [
        *("data=c4", "data.train_tokens=9")
    ],
    "evaluation.tokens is 32768, expected at most data.held_out_tokens": [
        *("data=c4", "data.held_out_tokens=9")
    ],
    "data.context_tokens is 129, but the model reads at most 128.": [
        *("data=c4", "data.context_tokens=129")
    ],
    "data.dataset is 'a/b/c': there is no such folder.": ["data=pile", "data.dataset=a/b/c"],
    "data.dataset is 'allenai/c4': neither a folder nor packed before, and HF_HUB_OFFLINE is": [
        "data=c4"
    ],
}


@pytest.mark.parametrize("expected", BAD)
def test_a_mistake_about_data_is_refused_in_one_line(
    expected: str,
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.doc").write_text("")
    assert run(*BAD[expected]) == 1
    assert expected in refusal(capsys, tmp_path)
    assert trainer.runs == []


@pytest.mark.parametrize("words", [["data.train_tokens=9", "stream.repeat=true"], ["k=4,8"]])
def test_as_many_tokens_as_are_packed_may_be_trained_on(
    run: Callable[..., int], trainer: Trainer, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("text")
    enough = ["data=text", "data.path=a.txt", "data.sample_by=line"]
    given = words if "stream.repeat=true" in words else [*words, "data.train_tokens=327680"]
    assert run(*enough, *given) == 0
    assert trainer.runs


# --- Data sets of the hub ------------------------------------------------------------------


def hub_rows(dataset: Path | str, tokenizer: Any, **changed: Any) -> list[list[list[int]]]:
    given = options(dataset=str(dataset), config=None, split="train", revision=None, streaming=True)
    splits: tuple[Literal["train", "held_out"], ...] = ("train", "held_out")
    return [every(Hub(**given | changed).rows(split, tokenizer)).tolist() for split in splits]


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
def test_streamed_and_local_rows_are_the_same(
    place: Path, own: Any, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path], None]
) -> None:
    write(place)
    rows: list[list[list[list[int]]]] = []
    for streaming in (True, False):
        monkeypatch.setenv("SAE_SWEEPS_CACHE", str(place.parent / f"cache-{streaming}"))
        rows.append(hub_rows(place, own, streaming=streaming))
    assert rows[0] == rows[1] == text_rows(place, own)
    monkeypatch.setattr(documents, "_datasets", lambda: pytest.fail("nothing is left to read"))
    for streaming in (True, False):
        assert hub_rows(place, own, streaming=streaming) == rows[0]


def test_other_splits_and_columns(place: Path, own: Any) -> None:
    for split, word in (("train", "one"), ("test", "two")):
        rows = [json.dumps({"text": f"{word} {i} " * 9, "body": "x"}) for i in range(20)]
        (place / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    assert {text.split()[0] for text in decoded(hub_rows(place, own), own)[0]} == {"one"}
    test = decoded(hub_rows(place, own, split="test"), own)
    assert {text.split()[0] for text in test[0]} == {"two"}
    for streaming in (True, False):
        with pytest.raises(ConfigError, match=r"data\.column is 'txt', expected one of 'text'"):
            hub_rows(place, own, column="txt", streaming=streaming)
        with pytest.raises(ConfigError, match=r"data\.dataset is .* cannot be read .*valid"):
            hub_rows(place, own, split="valid", streaming=streaming)


@pytest.mark.slow
def test_what_is_packed_needs_no_hub(
    place: Path,
    own: Any,
    run: Callable[..., int],
    trainer: Trainer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """What the hub would give comes from a folder once; then the name is enough."""
    write_jsonl(place)
    local = datasets.load_dataset("json", data_dir=str(place), split="train", streaming=True)

    def hub(*_: object, **__: object) -> object:
        return local

    monkeypatch.setattr(datasets, "load_dataset", hub)
    given = {"held_out_share": 0.3, "train_tokens": 2000, "held_out_tokens": 500}
    words = ["data=openwebtext", *(f"data.{name}={value}" for name, value in given.items())]
    words += ["training.tokens=1024", "evaluation.tokens=500", "stream.batch_tokens=250"]
    words += ["evaluation.ce_tokens=100"]
    assert run(*words) == 1
    assert "'Skylion007/openwebtext': neither a folder nor packed" in refusal(capsys, tmp_path)
    hub_rows("Skylion007/openwebtext", own, context_tokens=128, **given)
    assert run(*words, "data.column=body") == 1
    assert run(*words, "data.separator=eos") == 1 and trainer.runs == []
    assert run(*words) == 0 and len(trainer.runs) == 1


def test_a_copy_in_the_cache_of_datasets_needs_no_hub(
    place: Path,
    own: Any,
    run: Callable[..., int],
    trainer: Trainer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A copy as `datasets` leaves it, whose folder is renamed to that of a data set of the hub."""
    write_jsonl(place)
    datasets.load_dataset(str(place), split="train")
    [copy] = (tmp_path / "datasets").glob("*/*/0.0.0/*/")
    name = tmp_path / "datasets" / "some___my_name" / "default" / "0.0.0" / copy.name
    name.parent.mkdir(parents=True)
    copy.rename(name)
    [arrow] = name.glob("*.arrow")
    arrow.rename(name / "my_name-train.arrow")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    assert run("data=openwebtext", "data.dataset=some/MyName") == 0 and len(trainer.runs) == 1
    expected = text_rows(place, own)
    for streaming in (True, False):
        monkeypatch.setenv("SAE_SWEEPS_CACHE", str(tmp_path / f"cache-{streaming}"))
        assert hub_rows("some/MyName", own, streaming=streaming) == expected


# --- Training on them ----------------------------------------------------------------------
