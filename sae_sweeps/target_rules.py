"""Rules about target models and their files, before anything starts; no torch."""

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sae_sweeps.run import did_you_mean

Config = dict[str, Any]

HUB_LIMIT_S = 2.0
HUB_NAME = r"[\w.-]{1,96}(/[\w.-]{1,96})?"
EMBEDDED = Path(__file__).resolve().parent / "embedded" / "model"

# A residual stream's usual names, and others directly under a block that are no misspellings.
HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
OTHER_HOOKS = ("attn_in", "mlp_in", "q_input", "k_input", "v_input", "in", "out")


def activation_files_exist(config: Config) -> Iterator[str]:
    for name in ("path", "held_out_path"):
        path = config["target_model"].get(name)
        if not isinstance(path, str):
            continue
        if Path(path).suffix not in (".npy", ".safetensors"):
            yield f"target_model.{name} is {path!r}, expected a .npy or .safetensors file."
        elif not ((place := place_of(path)) and place.is_file()):
            yield f"target_model.{name} is {path!r}: there is no such file."


def models_and_hooks_exist(config: Config) -> Iterator[str]:
    node = config["target_model"]
    model, hook = node.get("model"), node.get("hook")
    if not isinstance(model, str):
        return
    folder = model_folder(model)
    if folder is None:
        yield from _model_can_be_had(model)
    if isinstance(hook, str):
        layers = _layers(folder) if folder else None
        yield from _hook_fits(hook, layers, model)


def _hook_fits(hook: str, layers: int | None, model: str) -> Iterator[str]:
    match = re.fullmatch(r"blocks\.([^.]*)\.(.+)", hook)
    if not match:
        return  # hooks outside the blocks are judged when the model is loaded
    layer, name = match.groups()
    if not layer.isdecimal() or (layers is not None and int(layer) >= layers):
        allowed = f"blocks.0 to blocks.{layers - 1}" if layers else "a number after 'blocks.'"
        yield f"target_model.hook is {hook!r}, expected {allowed} for {model!r}."
    # Names within a block's parts, as `attn.hook_z`, are judged when the model is loaded.
    judged = "." not in name and name.removeprefix("hook_") not in OTHER_HOOKS
    guess = did_you_mean(name, HOOKS) if judged else ""
    if guess and name not in HOOKS:
        nearest = guess.replace("'hook", f"'blocks.{layer}.hook")
        yield f"target_model.hook is {hook!r}, which a model does not have.{nearest}"


def _layers(folder: Path) -> int | None:
    """Read the number of blocks from a model's config.json, if it says so."""
    return number(folder, "n_layer", "num_hidden_layers", "n_layers", "num_layers")


def number(folder: Path, *names: str) -> int | None:
    """Read an integer from a model's config.json, under the first of its names that is there."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None  # the loader will say more
    config = config.get("text_config") or config if isinstance(config, dict) else {}
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def model_folder(model: str) -> Path | None:
    """Find a model's config.json: embedded, a folder, or the Hugging Face cache."""
    if model == "embedded":
        return EMBEDDED
    place = place_of(model)
    if place and (place / "config.json").is_file():
        return place
    if not re.fullmatch(HUB_NAME, model):
        return None
    # TransformerLens knows short names, so `gpt2` may lie in the cache as `openai-community/gpt2`.
    names = (f"models--{model.replace('/', '--')}", f"models--*--{model}")
    hits = [h for n in names for h in hub_cache().glob(f"{n}/snapshots/*/config.json")]
    return hits[0].parent if hits else None


def place_of(text: str) -> Path | None:
    """Give the path that a text names, unless no system could look for it."""
    try:
        place = Path(text).expanduser()
        place.exists()
    except (OSError, RuntimeError):  # too long, or the home of nobody
        return None
    return place


def hub_cache() -> Path:
    home = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _model_can_be_had(model: str) -> Iterator[str]:
    """Refuse what is neither here nor to be had; what the hub may know is left to loading."""
    what = f"target_model.model is {model!r}: "
    if (place := place_of(model)) and place.is_dir():
        yield f"{what}the folder has no config.json."
    elif not re.fullmatch(HUB_NAME, model) or model.startswith("."):
        yield f"{what}there is no such folder."
    elif silence := hub_silence():
        yield f"{what}neither a folder nor in the Hugging Face cache, and {silence}."


def hub_silence() -> str:
    """Say why nothing can be had from the hub; an empty text where something may be."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    return "" if _hub_answers() else f"{urlsplit(_hub_address()).hostname} does not answer"


def _hub_address() -> str:
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


@cache
def _hub_answers() -> bool:
    """Try to connect to the hub, or to the proxy in between, for a limited time."""
    address = urlsplit(_hub_address())
    proxy = getproxies().get(address.scheme)
    if proxy:
        address = urlsplit(proxy if "://" in proxy else f"//{proxy}")
    port = address.port or (80 if address.scheme == "http" else 443)
    answers: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=HUB_LIMIT_S).close()
            answers.append(True)
        except OSError:
            pass

    # In a thread, since looking up a host's name knows no time limit.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_LIMIT_S)
    return bool(answers)
