"""The text that ships with the package: CPython's own source and documentation."""

from typing import Annotated, Any, final

import numpy as np
from annotated_types import Ge

from sae_sweeps.data.token_rows import dtype_of
from sae_sweeps.embedded import BOS, MODEL, load_tokens
from sae_sweeps.interfaces import Data, Rows, Split
from sae_sweeps.system.tokenizers import first_token


@final
class Embedded(Data):
    """Rows of BOS and `context_tokens` - 1 tokens of the documents laid end to end.

    A BOS stands before each document; the incomplete last row is left out.
    The text ships as the embedded model's token ids; for
    another model's tokenizer it is decoded and encoded anew, which takes seconds.

    Raises:
        ConfigError: the tokenizer has neither a BOS nor an EOS token.
    """

    def __init__(self, *, context_tokens: Annotated[int, Ge(3)]) -> None:
        self.context_tokens = context_tokens

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        ids, starts = load_tokens(split)
        bos = BOS
        if not _is_embedded(tokenizer):
            bos = first_token(tokenizer)
            ids = _encode_anew(np.split(ids, starts[1:]), tokenizer, bos)
        width = self.context_tokens - 1
        count = len(ids) // width
        text = ids[: count * width].reshape(count, width)
        return Rows(np.pad(text, ((0, 0), (1, 0)), constant_values=bos))


def _is_embedded(tokenizer: Any) -> bool:
    return tokenizer.get_vocab() == _embedded_tokenizer().get_vocab()


def _embedded_tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def _encode_anew(documents: list[Any], tokenizer: Any, bos: int) -> Any:
    texts = _embedded_tokenizer().decode_batch([ids[1:].tolist() for ids in documents])
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)[
        "input_ids"
    ]
    dtype = dtype_of(tokenizer)
    return np.concatenate([np.array([bos, *ids], dtype) for ids in encoded])
