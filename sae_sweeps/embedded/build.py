"""Rebuild everything this folder ships: `python -m sae_sweeps.embedded.build --out DIR`."""

import argparse
import hashlib
import json
import logging
import lzma
import os
import platform
import shutil
import sysconfig
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sae_sweeps.embedded import BOS, LICENSE, MODEL, PROVENANCE, ROOT, TOKENS, corpus
from sae_sweeps.embedded.corpus import Document, Split
from sae_sweeps.embedded.ngram import KneserNey
from sae_sweeps.embedded.training import (
    CONTEXT,
    VOCAB,
    Recipe,
    evaluate,
    load_model,
    make_rows,
    train,
)

logger = logging.getLogger(__name__)

SPLITS: tuple[Split, Split] = ("train", "held_out")
END_OF_TEXT = "<|endoftext|>"
XZ_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lp": 1, "lc": 3, "pb": 1}
]
"""One position bit: the stream is a sequence of two-byte words."""

PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "safetensors")


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a byte-level BPE in which `<|endoftext|>` is id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    assert tokenizer.token_to_id(END_OF_TEXT) == BOS
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer in the format `AutoTokenizer` reads."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
    )
    wrapped.save_pretrained(folder)


def encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> NDArray[np.uint16]:
    """Return the ids of all documents as one stream, a BOS before each."""
    ids: list[int] = []
    for document in documents:
        own = tokenizer.encode(document.text).ids
        assert BOS not in own, f"{document.name} contains {END_OF_TEXT}"
        ids += [BOS, *own]
    return np.array(ids, dtype=np.uint16)


def save_tokens(ids: NDArray[np.uint16], path: Path) -> None:
    """Write ids as xz-compressed little-endian uint16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = ids.astype("<u2").tobytes()
    path.write_bytes(lzma.compress(raw, filters=XZ_FILTERS))


def score_ngrams(
    train_ids: NDArray[np.uint16], held_out_ids: NDArray[np.uint16]
) -> dict[str, float]:
    """Return the cross-entropies of the Kneser-Ney orders on the tokens the model predicts.

    Their context runs on across row starts, where the model sees only a BOS, so the comparison
    favours them.
    """
    predicted = held_out_ids[: len(held_out_ids) // (CONTEXT - 1) * (CONTEXT - 1)]
    scores: dict[str, float] = {}
    for order, name in enumerate(("unigram", "bigram", "trigram"), start=1):
        ngram = KneserNey.fit(train_ids, VOCAB, order)
        scores[name] = round(float(ngram.cross_entropy_nats(predicted, BOS).mean()), 4)
    return scores


def hash_file(path: Path) -> str:
    """Return the sha256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe_corpus(documents: list[Document]) -> dict[str, Any]:
    """Return what identifies the text and its split."""
    digests = "".join(f"{document.sha256} {document.name}\n" for document in documents)
    return {
        "source": f"standard library and docstrings of CPython {platform.python_version()}",
        "license": f"{LICENSE.name}; files with a notice of their own keep it in their text",
        "sha256": hashlib.sha256(digests.encode()).hexdigest(),
        "excluded": sorted(corpus.EXCLUDED_FILES),
        "held_out_lines_also_in_train_frac": round(corpus.shared_line_frac(documents), 4),
        "documents": {
            split: [document.name for document in documents if document.split == split]
            for split in SPLITS
        },
        "bytes": {
            split: sum(len(doc.text.encode()) for doc in documents if doc.split == split)
            for split in SPLITS
        },
    }


def describe_environment() -> dict[str, Any]:
    """Return what else the weights depend on, without anything that names this machine."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
        "scripts": {path.name: hash_file(path) for path in sorted(ROOT.glob("*.py"))},
    }


def build(out: Path, recipe: Recipe) -> dict[str, Any]:
    """Write model, tokens and licence into the empty folder `out` and return the provenance."""
    documents = corpus.collect()
    texts: dict[Split, list[Document]] = {
        split: [document for document in documents if document.split == split] for split in SPLITS
    }
    tokenizer = train_tokenizer(document.text for document in texts["train"])
    save_tokenizer(tokenizer, out / MODEL.name)
    ids = {split: encode(tokenizer, texts[split]) for split in SPLITS}
    for split in SPLITS:
        save_tokens(ids[split], out / TOKENS.name / f"{split}.u16.xz")
    library = Path(sysconfig.get_path("stdlib"))
    shutil.copyfile(library / "LICENSE.txt", out / LICENSE.name)
    ngram_nats = score_ngrams(ids["train"], ids["held_out"])
    logger.info("%s", ngram_nats)
    rows = make_rows(ids["held_out"])
    model, history = train(ids["train"], rows, recipe)
    model.half().save_pretrained(out / MODEL.name)
    shipped = load_model(out / MODEL.name)
    return {
        "held_out_nats_per_token": {"model": round(evaluate(shipped, rows), 4), **ngram_nats},
        "held_out_predicted_tokens": rows[:, 1:].numel(),
        "tokens": {split: len(ids[split]) for split in SPLITS},
        "parameters": shipped.num_parameters(),
        "recipe": {**vars(recipe), "steps": recipe.steps, "autocast": "bfloat16"},
        "history": history,
        "corpus": describe_corpus(documents),
        "environment": describe_environment(),
    }


def install(staging: Path, out: Path) -> None:
    """Move every entry of `staging` into `out`, each replaced as a whole."""
    out.mkdir(parents=True, exist_ok=True)
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # safetensors writes 0600
    replaced = staging.with_name(f"{staging.name}.replaced")
    replaced.mkdir()
    for entry in sorted(staging.iterdir()):
        target = out / entry.name
        if target.exists():
            target.rename(replaced / entry.name)
        entry.rename(target)
    shutil.rmtree(replaced)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=float, default=8e6, help="training tokens")
    parser.add_argument("--out", type=Path, default=ROOT, help="folder to write")
    return parser.parse_args()


def main() -> None:
    """Build beside the target folder, then install."""
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # One thread everywhere: the weights depend on the number.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    out: Path = arguments.out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        staging = Path(temporary) / "new"
        staging.mkdir()
        provenance = build(staging, Recipe(tokens=int(arguments.tokens)))
        files = sorted(path for path in staging.rglob("*") if path.is_file())
        provenance["files"] = {
            path.relative_to(staging).as_posix(): hash_file(path) for path in files
        }
        provenance["bytes"] = sum(path.stat().st_size for path in files)
        provenance["cpu_seconds"] = round(time.process_time(), 1)
        text = json.dumps(provenance, indent=2)
        (staging / PROVENANCE.name).write_text(text + "\n")
        install(staging, out)
    logger.info("%s", provenance["held_out_nats_per_token"])


if __name__ == "__main__":
    main()
