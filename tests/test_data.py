"""The embedded text: the same documents in any tokenizer's ids."""

from typing import Any, Literal, cast

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from sae_sweeps.data.embedded import Embedded
from sae_sweeps.embedded import MODEL, load_tokens
from sae_sweeps.run import ConfigError

CONTEXT = 64


@pytest.fixture(scope="module")
def own() -> Any:
    return cast(Any, AutoTokenizer.from_pretrained(MODEL))


def foreign(**special: str) -> Any:
    """A byte tokenizer of 300 ids whose BOS, where it has one, is not id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["<pad>", "<s>"]
    )
    tokenizer.train_from_iterator(["def f(self):\n    return self.f\n"] * 9, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_the_embedded_model_reads_the_ids_that_ship(
    own: Any, split: Literal["train", "held_out"]
) -> None:
    rows = Embedded(context_tokens=CONTEXT).rows(split, own)
    ids, _ = load_tokens(split)
    assert rows.shape == (len(ids) // (CONTEXT - 1), CONTEXT)
    assert (rows[:, 0] == 0).all()
    assert rows[:, 1:].flatten().tolist() == ids[: rows[:, 1:].numel()].tolist()


def test_another_tokenizer_reads_the_same_text(own: Any) -> None:
    other = foreign(bos_token="<s>", pad_token="<pad>")
    rows = Embedded(context_tokens=CONTEXT).rows("held_out", other)
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
    assert (Embedded(context_tokens=CONTEXT).rows("held_out", other)[:, 0] == 1).all()


def test_a_tokenizer_without_either_is_refused() -> None:
    with pytest.raises(ConfigError, match="neither a BOS nor an EOS"):
        Embedded(context_tokens=CONTEXT).rows("held_out", foreign())
