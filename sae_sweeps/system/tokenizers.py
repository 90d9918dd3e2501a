"""What a Hugging Face tokenizer's ids stand for; no torch."""

from typing import Any

from sae_sweeps.errors import ConfigError


def first_token(tokenizer: Any) -> int:
    """The id that opens rows: BOS, or EOS where there is none; raises ConfigError."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:  # 0 is a token like any other
            return token
    raise ConfigError("target_model.model: its tokenizer has neither a BOS nor an EOS token.")


def special_ids(tokenizer: Any) -> list[int]:
    """Ids that stand for no text: BOS, EOS, padding and what else is special.

    UNK is not among them, unless it also serves as one of these: it stands for text that the
    tokenizer cannot spell.
    """
    names = ("bos", "eos", "pad", "sep", "cls", "mask")
    named = {getattr(tokenizer, f"{name}_token_id") for name in names}
    others = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return sorted((named | others) - {None})
