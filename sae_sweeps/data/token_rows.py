"""Packs documents into rows of token ids, once; the same rows however often it is interrupted.

The layout is our design; datasets and TransformerLens drop the ends of their batches, so that
rows depend on the number of workers.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from sae_sweeps.data import token_cache
from sae_sweeps.data.matrix import START, Matrix
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Rows, Split
from sae_sweeps.system import files, interrupt
from sae_sweeps.system.files import digest
from sae_sweeps.system.tokenizers import first_token

log = logging.getLogger("sae_sweeps.data")

COMMIT_S = 10.0
"""Between two moments from which a killed process's work can go on."""
BATCH_CHARACTERS = 2**21
"""Text that is encoded at once, by as many threads as the tokenizer has."""
PIECE_CHARACTERS = 2**20
"""Longer documents are encoded in pieces, which end with a line where they can."""

SPLITS: tuple[Split, Split] = get_args(Split)


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """How documents become rows; every field rules them."""

    context_tokens: int
    """Length of a row, its first BOS included."""
    separator: Literal["bos", "eos", "none"]
    """A BOS before each document, an EOS after it, or neither."""
    special_strings: bool
    """Whether a special token's name in a document, as `<|endoftext|>`, becomes that token."""
    held_out_share: float
    """Share of the documents that are held out, by a hash of their text."""
    train_tokens: int | None
    """Training tokens to pack, BOS of rows not counted; None: all there are."""
    held_out_tokens: int | None
    """The same of held-out tokens."""

    @property
    def rules(self) -> dict[str, Any]:
        """All fields as plain data; one that came later is left out where it changes nothing."""
        later = token_cache.LATER.items()
        return {name: value for name, value in asdict(self).items() if (name, value) not in later}

    def rows_wanted(self, split: Split) -> int | None:
        """How many rows hold the tokens asked for."""
        tokens = self.train_tokens if split == "train" else self.held_out_tokens
        return None if tokens is None else -(-tokens // (self.context_tokens - 1))

    def split_of(self, text: str) -> Split:
        """The split that a document belongs to, in every sweep."""
        number = hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
        held_out = int.from_bytes(number) < self.held_out_share * 2**64
        return "held_out" if held_out else "train"


# --- Tokenizers ----------------------------------------------------------------------------


def dtype_of(tokenizer: Any) -> type[np.uint16] | type[np.uint32]:
    """The smallest type that holds every id."""
    return np.uint16 if max(tokenizer.get_vocab().values()) < 2**16 else np.uint32


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash what rules the ids of a text without special tokens around it."""
    described: dict[str, Any] = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    if getattr(tokenizer, "is_fast", False):
        described = json.loads(tokenizer.backend_tokenizer.to_str())
        for name in ("truncation", "padding", "post_processor"):  # what others may set, unused here
            described.pop(name, None)
    return digest([described, tokenizer.bos_token_id, tokenizer.eos_token_id])


def _encode(tokenizer: Any, texts: list[str], special_strings: bool) -> Iterator[list[int]]:
    """Encode texts, long ones piece by piece; a batch for the tokenizer's threads to share."""
    pieces = [list(_pieces(text)) for text in texts]
    flat = [piece for some in pieces for piece in some]
    if not flat:
        return
    ids = iter(
        tokenizer(
            flat,
            add_special_tokens=False,
            split_special_tokens=not special_strings,
            verbose=False,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
    )
    for some in pieces:
        yield [token for part in islice(ids, len(some)) for token in part]


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = text.rfind("\n", start, start + PIECE_CHARACTERS) + 1 or start + PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


# --- Rows ----------------------------------------------------------------------------------


def packed_rows(
    split: Split,
    tokenizer: Any,
    given: RowOptions,
    source: dict[str, Any],
    documents: Callable[[], Iterable[str]],
) -> Rows:
    """Rows of a split, mapped from disk; they are packed first where that was not done before.

    Args:
        source: what the documents are a function of, as plain data; named in the cache's key.
        documents: the texts in a fixed order; asked for only where there is something to pack.

    Raises:
        ConfigError: too few documents, a tokenizer without BOS and EOS, a cache not to be written.
    """
    bos = first_token(tokenizer)
    rules: dict[str, Any] = {"format": token_cache.FORMAT, "source": source}
    rules |= {"packing": given.rules, "tokenizer": tokenizer_hash(tokenizer)}
    folder = token_cache.root() / digest(rules)[:32]
    manifest = token_cache.whole(folder)
    if manifest is None:
        with token_cache.held(folder), token_cache.writing():
            manifest = token_cache.whole(folder)  # somebody may have packed them meanwhile
            if manifest is None:
                build = _Build(folder, tokenizer, given, bos)
                with closing(build):
                    manifest = build.run(documents(), rules)
    sha256 = manifest["splits"][split]["sha256"]
    return Rows(np.load(folder / f"{split}.npy", mmap_mode="r"), sha256)


class _Build:
    """One folder's matrices in the making; what an earlier process committed is gone on with."""

    def __init__(self, folder: Path, tokenizer: Any, given: RowOptions, bos: int) -> None:
        self.folder, self.tokenizer, self.given = folder, tokenizer, given
        eos = bos if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        self.before = [bos] if given.separator == "bos" else []
        self.after = [eos] if given.separator == "eos" else []
        progress: dict[str, Any] = token_cache.resumable(folder, SPLITS) or {
            "documents": 0,
            "texts": 0,
            "train": START,
            "held_out": START,
        }
        self.documents, self.texts = int(progress["documents"]), int(progress["texts"])
        dtype, seq = dtype_of(tokenizer), given.context_tokens
        self.matrices: dict[Split, Matrix] = {}
        for split in SPLITS:
            self.matrices[split] = Matrix(
                folder / f"{split}.npy",
                dtype,
                seq=seq,
                bos=bos,
                wanted=given.rows_wanted(split),
                state=progress[split],
            )
        self.committed = time.monotonic()

    def close(self) -> None:
        """Close the files."""
        for matrix in self.matrices.values():
            matrix.file.close()

    def run(self, documents: Iterable[str], rules: dict[str, Any]) -> dict[str, Any]:
        """Pack the documents that are not packed yet; the manifest, which holds the `rules`."""
        log.info("data: packs tokens from document %d on into %s", self.documents, self.folder)
        for batch in _batches(islice(documents, self.documents, None)):
            interrupt.check()
            self._add(batch)
            if all(matrix.full for matrix in self.matrices.values()):
                break
            if time.monotonic() - self.committed >= COMMIT_S:
                self._commit()
                log.info("data: packed %s", self._figures())
        self._commit()
        self._suffices()
        splits = {split: matrix.finish() for split, matrix in self.matrices.items()}
        counts = {"documents": self.documents, "with_text": self.texts}
        manifest = rules | counts | {"splits": splits}
        token_cache.commit(self.folder, manifest)
        log.info("data: packed %s; done", self._figures())
        return manifest

    def _add(self, batch: list[str]) -> None:
        self.documents += len(batch)
        texts = [text for text in batch if text and not text.isspace()]
        self.texts += len(texts)
        owners = [self.matrices[self.given.split_of(text)] for text in texts]
        open_ = [(text, own) for text, own in zip(texts, owners, strict=True) if not own.full]
        texts = [text for text, _ in open_]
        encoded = _encode(self.tokenizer, texts, self.given.special_strings)
        for (_, own), ids in zip(open_, encoded, strict=True):
            own.add([*self.before, *ids, *self.after])

    def _commit(self) -> None:
        states = {split: matrix.commit() for split, matrix in self.matrices.items()}
        progress = {"documents": self.documents, "texts": self.texts} | states
        files.write_json(self.folder / token_cache.PROGRESS, progress)
        self.committed = time.monotonic()

    def _figures(self) -> str:
        parts = [f"{m.tokens:,} {split} tokens" for split, m in self.matrices.items()]
        return f"{' and '.join(parts)} of {self.documents:,} documents"

    def _suffices(self) -> None:
        """Refuse data without text, without a row, or with fewer tokens than asked for."""
        if not self.texts:
            raise ConfigError(f"data: its {self.documents} documents hold no text.")
        for split, matrix in self.matrices.items():
            asked = getattr(self.given, f"{split}_tokens")
            if asked is not None and not matrix.full:
                raise ConfigError(
                    f"data.{split}_tokens is {asked}: the data hold {matrix.tokens} such tokens. "
                    "Ask for as many at most, or for all with null."
                )
            if not matrix.rows:
                raise ConfigError(
                    f"data: {self.texts} documents fill no {split} row of data.context_tokens, "
                    f"which is {self.given.context_tokens}, with data.held_out_share "
                    f"{self.given.held_out_share:g} of them held out: more and smaller documents "
                    "help (data.sample_by), or another share."
                )


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in batches of about the same size in characters."""
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
