"""Tiny random models of real architectures in folders, each with a tokenizer of its own."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from sae_sweeps.interfaces import Data, Rows, Split
from sae_sweeps.system.tokenizers import first_token
from sae_sweeps.target_model.transformer_lens import TransformerLens

CPU = torch.device("cpu")
LAYERS, WIDTH, VOCABULARY, WINDOW = 3, 32, 300, 7
LONGEST = 320
"""What every model reads: longer than all sliding windows."""

WORDS = ["the", "a", "cat", "dog", "hill", "sat", "ran", "on", "over", "and", "it", "was", "not"]


@dataclass(frozen=True)
class Family:
    """An architecture: how a model of it is made, and what its parts are called."""

    model: Callable[[], Any]
    blocks: str
    attention: str
    """what a block adds first to the residual stream"""
    mlp: str
    """what it adds next"""
    between: str | None
    """what takes the stream between the two; None where both read the block's input"""
    norm: str
    """what comes after the last block"""
    special: dict[str, str]
    """the tokenizer's special tokens"""
    opens: bool = False
    """whether the tokenizer itself puts BOS before a text"""


COMMON: dict[str, Any] = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": LONGEST,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
GROUPED: dict[str, Any] = COMMON | {"num_key_value_heads": 2}
GEMMA: dict[str, Any] = GROUPED | {
    "head_dim": 16,  # heads are wider than the stream divided by their number
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 16,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": LONGEST,
    "vocab_size": VOCABULARY,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
KINDS = ["sliding_attention", "full_attention", "sliding_attention"]
END = "<|endoftext|>"
ENDS = {"bos_token": END, "eos_token": END, "unk_token": END}
PADS = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"}
LLAMA = ("model.layers", "self_attn", "mlp", "post_attention_layernorm", "model.norm")
GEMMAS = (
    "model.layers",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
    "pre_feedforward_layernorm",
    "model.norm",
)

FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
        *("transformer.h", "attn", "mlp", "ln_2", "transformer.ln_f"),
        special=ENDS,
    ),
    "pythia": Family(
        lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**COMMON)),
        *("gpt_neox.layers", "attention", "mlp", None, "gpt_neox.final_layer_norm"),
        special={"eos_token": END},
    ),
    "llama": Family(
        lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
        *LLAMA,
        special={"bos_token": "<s>", "eos_token": "</s>"},
        opens=True,
    ),
    "gemma2": Family(
        lambda: Gemma2ForCausalLM(
            Gemma2Config(
                **GEMMA,
                layer_types=KINDS,
                attn_logit_softcapping=2.0,
                final_logit_softcapping=5.0,
            )
        ),
        *GEMMAS,
        special=PADS,
        opens=True,
    ),
    "gemma3": Family(
        lambda: Gemma3ForCausalLM(Gemma3TextConfig(**GEMMA, layer_types=KINDS)),
        *GEMMAS,
        special=PADS,
        opens=True,
    ),
    "qwen2": Family(
        lambda: Qwen2ForCausalLM(
            Qwen2Config(
                **GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1
            )
        ),
        *LLAMA,
        special={"eos_token": END, "pad_token": "<|im_end|>", "unk_token": END},
    ),
    "qwen3": Family(
        lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED, head_dim=16)), *LLAMA, special=ENDS
    ),
}


def save(name: str, folder: Path) -> Path:
    """Make a family's model and tokenizer in a folder; the same at every call."""
    torch.manual_seed(0)
    family = FAMILIES[name]
    model = family.model()
    enliven(model)
    model.eval().save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return folder


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Draw weights so large that no part of the model, bias or norm may be left out unseen."""
    for name, parameter in model.named_parameters():
        draw = torch.randn(parameter.shape)
        if parameter.ndim == 1:
            parameter.add_(0.3 * draw)
        elif "emb" in name or "wte" in name or "wpe" in name:
            parameter.copy_(0.5 * draw)
        else:
            parameter.copy_(1.5 * draw / math.sqrt(WIDTH))


def teach(folder: Path, pages: list[str], steps: int = 60) -> None:
    """Train a model a little, so that it predicts a text worse without what it computes."""
    words: Any = AutoTokenizer.from_pretrained(folder)
    ids = words(" ".join(pages), add_special_tokens=False)["input_ids"]
    rows = torch.tensor(ids[: len(ids) // 32 * 32]).view(-1, 32)
    model = reference(folder)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        batch = rows[torch.arange(16 * step, 16 * step + 16) % len(rows)]
        loss = model(input_ids=batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.save_pretrained(folder)


def tokenizer(family: Family) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, trained on a page, with the family's special tokens."""
    bare = Tokenizer(models.BPE())
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 5,
        special_tokens=list(dict.fromkeys(family.special.values())),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bare.train_from_iterator([text(0, 200)], trainer)
    if family.opens:
        bos = family.special["bos_token"]
        bare.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bare.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=bare, **family.special)


def text(seed: int, words: int) -> str:
    """Words drawn at random."""
    drawn = np.random.default_rng(seed).choice(WORDS, words)
    return " ".join(drawn.tolist())


class Drawn(Data):
    """Rows of random tokens after the tokenizer's first one."""

    def __init__(self, context: int = 24, train: int = 40, held_out: int = 12) -> None:
        self.context = context
        self.counts: dict[Split, int] = {"train": train, "held_out": held_out}

    def rows(self, split: Split, tokenizer: Any) -> Rows:
        shape = self.counts[split], self.context
        ids = np.random.default_rng(len(split)).integers(VOCABULARY, size=shape).astype(np.uint16)
        ids[:, 0] = first_token(tokenizer)
        return Rows(ids)

    def tokens(self, target: TransformerLens, split: Split = "held_out") -> Tensor:
        """All rows of a split as a target model has them."""
        return target.tokens[split][torch.arange(self.counts[split])]


def target(folder: Path, hook: str, data: Data | None = None, **changed: Any) -> TransformerLens:
    """The target model of a folder, in float32 unless told otherwise."""
    given: dict[str, Any] = {
        "revision": None,
        "dtype": "float32",
        "compatibility_mode": False,
        "rows_per_forward": 5,
    } | changed
    return TransformerLens(data or Drawn(), CPU, model=str(folder), hook=hook, **given)


def reference(folder: Path) -> Any:
    """Hugging Face's model, eager and exact."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
