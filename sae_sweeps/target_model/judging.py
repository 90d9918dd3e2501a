"""Whether activations, or a model and its hook, can be had; before anything starts, no torch."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sae_sweeps.errors import did_you_mean
from sae_sweeps.system import files, hugging_face
from sae_sweeps.target_model import facts

Config = Mapping[str, Any]

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
    yield from _hook_fits(hook, facts.of_files(model, revision), model)


def contexts_fit(config: Config) -> Iterator[str]:
    """The model's config says how much it reads, which spares packing rows that are too long."""
    tokens, node = config["data"].get("context_tokens"), config["target_model"]
    known = facts.of_files(node["model"], node["revision"])
    most = facts.number(known, "n_positions", "max_position_embeddings")
    if isinstance(tokens, int) and most is not None and tokens > most:
        yield f"data.context_tokens is {tokens}, but the model reads at most {most}."


def _hook_fits(hook: str, known: Config, model: str) -> Iterator[str]:
    match = re.fullmatch(r"blocks\.([^.]*)\.(.+)", hook)
    if not match:
        return  # hooks outside the blocks are judged when the model is loaded
    layer, name = match.groups()
    layers = facts.number(known, "n_layer", "num_hidden_layers", "n_layers", "num_layers")
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
