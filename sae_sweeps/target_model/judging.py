"""Whether activations, or a model and its hook, can be had; before anything starts, no torch."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_sweeps.errors import did_you_mean
from sae_sweeps.system import files, hugging_face

Config = Mapping[str, Any]

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "model"

# A residual stream's usual names, and others directly under a block that are no misspellings.
HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
OTHER_HOOKS = ("attn_in", "mlp_in", "q_input", "k_input", "v_input", "in", "out")

# Blocks that compute attention and MLP of the same input: by type, or where a flag says so.
PARALLEL = ("codegen", "cohere", "cohere2", "gptj", "phi")
BESIDE = ("use_parallel_residual", "parallel_attn")


def activation_files_exist(config: Config) -> Iterator[str]:
    for name in ("path", "held_out_path"):
        path = config["target_model"][name]
        if path is None:
            continue
        if Path(path).suffix not in (".npy", ".safetensors"):
            yield f"target_model.{name} is {path!r}, expected a .npy or .safetensors file."
        elif not ((place := files.place_of(path)) and place.is_file()):
            yield f"target_model.{name} is {path!r}: there is no such file."


def models_and_hooks_exist(config: Config) -> Iterator[str]:
    node = config["target_model"]
    model, hook, revision = node["model"], node["hook"], node["revision"]
    yield from _model_can_be_had(model, revision)
    folder = model_folder(model, revision)
    yield from _hook_fits(hook, _facts(folder) if folder else {}, model)


def contexts_fit(config: Config) -> Iterator[str]:
    """The model's config says how much it reads, which spares packing rows that are too long."""
    tokens, node = config["data"].get("context_tokens"), config["target_model"]
    folder = model_folder(node["model"], node["revision"])
    most = _number(_facts(folder), "n_positions", "max_position_embeddings") if folder else None
    if isinstance(tokens, int) and most is not None and tokens > most:
        yield f"data.context_tokens is {tokens}, but the model reads at most {most}."


def width(config: Config) -> int | None:
    """Width of the activations at a hook, by the model's config; None where it does not say."""
    node = config["target_model"]
    folder = model_folder(node["model"], node["revision"])
    known = _facts(folder) if folder else {}
    residual = _number(known, "n_embd", "hidden_size", "d_model")
    part = re.sub(r"^blocks\.\d+\.", "", node["hook"])
    if part in HOOKS or part == "hook_embed" or part.startswith("ln"):
        return residual
    if part in ("mlp.hook_pre", "mlp.hook_post"):
        inner = _number(known, "n_inner", "intermediate_size", "ffn_dim")
        return inner or (4 * residual if residual and known.get("model_type") == "gpt2" else None)
    return None


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


def weight_bytes(config: Config) -> int:
    """Size of the model's weights as they lie on disk; 0 where they are not here yet."""
    node = config["target_model"]
    folder = model_folder(node["model"], node["revision"])
    return sum(path.stat().st_size for path in folder.glob("*.safetensors")) if folder else 0


def _hook_fits(hook: str, known: Config, model: str) -> Iterator[str]:
    match = re.fullmatch(r"blocks\.([^.]*)\.(.+)", hook)
    if not match:
        return  # hooks outside the blocks are judged when the model is loaded
    layer, name = match.groups()
    layers = _number(known, "n_layer", "num_hidden_layers", "n_layers", "num_layers")
    if not layer.isdecimal() or (layers is not None and int(layer) >= layers):
        allowed = f"blocks.0 to blocks.{layers - 1}" if layers else "a number after 'blocks.'"
        yield f"target_model.hook is {hook!r}, expected {allowed} for {model!r}."
    # Names within a block's parts, as `attn.hook_z`, are judged when the model is loaded.
    judged = "." not in name and name.removeprefix("hook_") not in OTHER_HOOKS
    guess = did_you_mean(name, HOOKS) if judged else ""
    if guess and name not in HOOKS:
        nearest = guess.replace("'hook", f"'blocks.{layer}.hook")
        yield f"target_model.hook is {hook!r}, which a model does not have.{nearest}"
    if name == "hook_resid_mid" and _is_parallel(known):
        yield (
            f"target_model.hook is {hook!r}: attention and MLP of {model!r} run side by side, "
            f"with nothing in between; expected blocks.{layer}.hook_resid_pre or hook_resid_post."
        )


def _is_parallel(known: Config) -> bool:
    return known.get("model_type") in PARALLEL or any(known.get(flag) is True for flag in BESIDE)


def _facts(folder: Path) -> Config:
    """Read a model's config.json, its language part where it has several."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # the loader will say more
    text = config.get("text_config") if isinstance(config, dict) else {}
    return text if isinstance(text, dict) else config


def _number(known: Config, *names: str) -> int | None:
    """Read an integer of a model's config under the first of its names that is there."""
    return next((known[name] for name in names if isinstance(known.get(name), int)), None)


def model_folder(model: str, revision: str | None) -> Path | None:
    """Find a model's config.json: embedded, a folder, or the Hugging Face cache."""
    if model == "embedded":
        return EMBEDDED
    place = files.place_of(model)
    if place and (place / "config.json").is_file():
        return place
    return hugging_face.snapshot(model, revision)


def _model_can_be_had(model: str, revision: str | None) -> Iterator[str]:
    """Refuse what is neither here nor to be had."""
    what = f"target_model.model is {model!r}: "
    place = files.place_of(model)
    if model == "embedded" or (place and place.is_dir()):
        if revision is not None:
            yield (
                f"target_model.revision is {revision!r}, but only models of the hub have "
                f"revisions, and {model!r} is a folder; expected null."
            )
        yield from _folder_is_whole(place, what) if place and model != "embedded" else ()
    elif not hugging_face.is_name(model):
        yield f"{what}there is no such folder."
    else:
        yield from _hub_has_it(hugging_face.Repository("target_model.model", model, revision))


def _folder_is_whole(place: Path, what: str) -> Iterator[str]:
    if not (place / "config.json").is_file():
        yield f"{what}the folder has no config.json."
    elif lacking := hugging_face.without_weights(place):
        yield f"{what}the folder has no {lacking}: save the model there with save_pretrained."
    elif not hugging_face.has_tokenizer(place):
        yield (
            f"{what}the folder has no tokenizer.json: save the tokenizer beside the model with "
            "save_pretrained."
        )


def _hub_has_it(repository: hugging_face.Repository) -> Iterator[str]:
    """Refuse a model that is not wholly in the cache, and that the hub does not give."""
    folder = hugging_face.snapshot(repository.given, repository.revision)
    if folder and not hugging_face.without_weights(folder) and hugging_face.has_tokenizer(folder):
        return
    if silence := hugging_face.silence():
        part = "only in part in" if folder else "neither a folder nor in"
        of = f" at revision {repository.revision!r}" if repository.revision else ""
        yield f"{repository.what}{part} the Hugging Face cache{of}, and {silence}."
    # Without a slash it may be one of TransformerLens' short names.
    elif "/" in repository.given and (refusal := hugging_face.refusal(repository)):
        yield refusal
