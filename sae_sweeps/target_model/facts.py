"""What a model's config.json tells: widths, sizes; from files or the hub, no torch."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.system import files, hugging_face

Config = Mapping[str, Any]

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "model"
FEW_ROWS = 16
"""Token rows of a pass that keep a CPU busy"""
KEPT_BYTES = 2**29
"""Clean log probabilities of held-out tokens that are kept, since every run asks for them"""
LARGEST = 2**40
"""What is no size of any model's."""
BYTES = {"float32": 4}
"""Of a weight in a dtype; of all others it is 2."""
RESIDUAL = r"hook_(resid_\w+|attn_out|mlp_out|embed)|ln\w*(\.hook_(in|out|normalized))?"
"""Hooks, and parts of a block, that are as wide as the residual stream."""

BEFORE_BLOCKS = ("hook_embed", "hook_pos_embed", "embed.hook_in", "embed.hook_out")
# What configs do not say: whose MLP has two matrices and not three, who shares its embedding with
# its unembedding where nothing else is said, and who has positions that are learned.
UNGATED = (
    *("bloom", "codegen", "falcon", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "mpt"),
    *("opt", "phi", "starcoder2"),
)
TIED = (
    "bloom",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "opt",
)
LEARNED_POSITIONS = ("gpt2", "gpt_bigcode", "gpt_neo", "opt")


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has; biases and norms are left out."""

    below: int
    """of the blocks up to the hook's, which a pass for activations goes through"""
    passed: int
    """of all blocks and the unembedding, which a pass for predictions goes through"""
    stored: int
    """all of them"""


def model_folder(model: str, revision: str | None) -> Path | None:
    """Find a model's config.json: embedded, a folder, or the Hugging Face cache."""
    if model == "embedded":
        return EMBEDDED
    place = files.place_of(model)
    if place and (place / "config.json").is_file():
        return place
    return hugging_face.snapshot(model, revision)


def of_files(model: str, revision: str | None) -> Config:
    """Read a model's config.json where it is here, its language part where it has several."""
    folder = model_folder(model, revision)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError, RecursionError):
        return {}  # the loader will say more
    return _language_part(config)


def of(node: Config) -> Config:
    """The same; where the model is not here yet, the hub is asked, and nothing kept."""
    model, revision = node["model"], node["revision"]
    known = of_files(model, revision)
    if known or model_folder(model, revision) or not hugging_face.is_name(model):
        return known
    repository = hugging_face.Repository("target_model.model", model, revision)
    return _language_part(hugging_face.model_config(repository))


def _language_part(config: Any) -> Config:
    text = config.get("text_config") if isinstance(config, dict) else {}
    return text if isinstance(text, dict) else config


def number(known: Config, *names: str) -> int | None:
    """Read a size of a model's config under the first of its names that has one."""
    found = (known.get(name) for name in names)
    return next((size for size in found if type(size) is int and 0 < size < LARGEST), None)


def width(node: Config) -> int | None:
    """Width of the activations at a hook; None where nobody says."""
    known = of(node)
    part = re.sub(r"^blocks\.\d+\.", "", node["hook"])
    if re.fullmatch(RESIDUAL, part):
        return _residual(known)
    return _inner(known) if part in ("mlp.hook_pre", "mlp.hook_post") else None


def parameters(node: Config) -> Parameters | None:
    """Count a model's parameters; None where its config does not tell them, or has experts."""
    known = of(node)
    d_model, inner = _residual(known), _inner(known)
    layers = number(known, "n_layer", "num_hidden_layers", "n_layers", "num_layers")
    vocabulary = number(known, "vocab_size")
    heads = number(known, "n_head", "num_attention_heads", "n_heads", "num_heads")
    if not (d_model and inner and layers and vocabulary and heads) or _has_experts(known):
        return None
    d_head = number(known, "head_dim") or d_model // heads
    shared = known.get("multi_query") is True
    key_heads = 1 if shared else number(known, "num_key_value_heads") or heads
    kind = known.get("model_type")
    block = 2 * d_model * d_head * (heads + key_heads)
    block += (2 if kind in UNGATED else 3) * d_model * inner
    match = re.match(r"blocks\.(\d+)\.", node["hook"])
    below = 0 if node["hook"] in BEFORE_BLOCKS else layers
    if match:
        below = min(layers, int(match[1]) + (".hook_resid_pre" not in node["hook"]))
    tied = known.get("tie_word_embeddings", kind in TIED)
    embeddings = (1 if tied else 2) * vocabulary * d_model
    if kind in LEARNED_POSITIONS:
        embeddings += d_model * (number(known, "n_positions", "max_position_embeddings") or 0)
    passed = layers * block + vocabulary * d_model
    return Parameters(below * block, passed, layers * block + embeddings)


def weight_bytes(node: Config) -> int:
    """Size of a model's weights in memory, or else on disk; 0 where nobody says."""
    counted = parameters(node)
    if counted:
        return counted.stored * BYTES.get(node["dtype"], 2)
    folder = model_folder(node["model"], node["revision"])
    files = folder.glob("*.safetensors") if folder else ()
    return sum(path.stat().st_size for path in files if path.is_file())


def model_bytes(config: Config) -> tuple[int, int]:
    """What a model takes of memory: its weights; log probabilities kept, and logits of a pass."""
    node, tokens = config["target_model"], config["evaluation"]["ce_tokens"]
    vocabulary = number(of(node), "vocab_size") or 0
    rows = FEW_ROWS if node["rows_per_forward"] == "auto" else node["rows_per_forward"]
    at_once = min(tokens, rows * config["data"].get("context_tokens", 0))
    logits = BYTES.get(node["dtype"], 2) * vocabulary * at_once
    return weight_bytes(node), min(4 * vocabulary * tokens, KEPT_BYTES) + logits


def is_here(node: Config) -> bool:
    """Whether a model's weights and tokenizer are on this machine."""
    folder = model_folder(node["model"], node["revision"])
    whole = folder and not hugging_face.without_weights(folder)
    return bool(whole and folder and hugging_face.has_tokenizer(folder))


def _residual(known: Config) -> int | None:
    return number(known, "n_embd", "hidden_size", "d_model")


def _inner(known: Config) -> int | None:
    inner = number(known, "n_inner", "intermediate_size", "ffn_dim", "ffn_hidden_size")
    d_model = _residual(known)
    return inner or (4 * d_model if d_model and known.get("model_type") in UNGATED else None)


def _has_experts(known: Config) -> bool:
    return any("expert" in name and known[name] for name in known)


def width_of_file(path: str) -> int | None:
    """Width of the activations in a file, by its header; None where that does not say."""
    place = files.place_of(path)
    try:
        if place and place.suffix == ".npy":
            import numpy as np

            return int(np.load(place, mmap_mode="r").shape[-1])
        if place and place.suffix == ".safetensors":
            with place.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
            [tensor] = [value for name, value in header.items() if name != "__metadata__"]
            return int(tensor["shape"][-1])
    except (OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError):
        pass  # who opens it will say what is wrong with it
    return None
