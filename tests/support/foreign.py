"""Tokenizers of other models."""

from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


def foreign(**special: Any) -> Any:
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


def nothing(*_: object) -> None:
    """Stand in for what only costs time."""
