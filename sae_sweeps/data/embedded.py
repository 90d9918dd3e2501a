"""The text that ships with the package: CPython's own source and documentation."""

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_sweeps.embedded import BOS, MODEL, load_tokens
from sae_sweeps.interfaces import Data, Split
from sae_sweeps.run import ConfigError


@final
class Embedded(Data):
    """Rows of BOS and `context_tokens` - 1 tokens of the documents laid end to end.

    A BOS stands before each document; the incomplete last row is left out.
    The text ships as the embedded model's token ids; for
    another model's tokenizer it is decoded and encoded anew, which takes seconds.

    Raises:
        ConfigError: the tokenizer has neither a BOS nor an EOS token.
    """

    def __init__(self, *, context_tokens: int) -> None:
        self.context_tokens = context_tokens

    def rows(self, split: Split, tokenizer: Any) -> Int[Tensor, "rows seq"]:
        ids, starts = load_tokens(split)
        bos = BOS
        if not _is_embedded(tokenizer):
            bos = _separator(tokenizer)
            ids = _encode_anew(np.split(ids, starts[1:]), tokenizer, bos)
        width = self.context_tokens - 1
        count = len(ids) // width
        text = ids[: count * width].reshape(count, width).astype(np.int64)
        return torch.nn.functional.pad(torch.from_numpy(text), (1, 0), value=bos)


def _is_embedded(tokenizer: Any) -> bool:
    return tokenizer.get_vocab() == _embedded_tokenizer().get_vocab()


def _embedded_tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def _separator(tokenizer: Any) -> int:
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:  # 0 is a token like any other
            return token
    raise ConfigError("target_model.model: its tokenizer has neither a BOS nor an EOS token.")


def _encode_anew(documents: list[Any], tokenizer: Any, bos: int) -> Any:
    texts = _embedded_tokenizer().decode_batch([ids[1:].tolist() for ids in documents])
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return np.concatenate([np.array([bos, *ids]) for ids in encoded])
