"""Rules between options, on the checked dict, before anything starts; no torch.

A rule yields complaints, one line each: dotted path, value, what is allowed. It finds its options
by name in whatever node holds them, never by a method's name, so a variant from outside obeys too.
"""

import json
import math
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from sae_sweeps.run import ConfigError, did_you_mean

Config = dict[str, Any]
Rule = Callable[[Config], Iterator[str]]

HUB_LIMIT_S = 2.0
EMBEDDED = Path(__file__).resolve().parent / "embedded" / "model"

METHOD = ("architecture", "allocator", "aux_loss", "resampling", "fine_tune")
NODES = (*METHOD, "target_model", "data", "stream", "training", "evaluation")

# A residual stream's usual names, and others directly under a block that are no misspellings.
HOOKS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post", "hook_attn_out", "hook_mlp_out")
OTHER_HOOKS = ("attn_in", "mlp_in", "q_input", "k_input", "v_input", "in", "out")

LIMITS: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("expected 1 to 2^26", lambda v: 1 <= v <= 2**26, "d_sae"),
    ("expected 0 to 2^63 - 1", lambda v: 0 <= v < 2**63, "seed"),
    ("expected at least 0 and less than 1", lambda v: 0 <= v < 1, "beta1 beta2"),
    (
        "expected more than 0",
        lambda v: v > 0,
        "k lr gradient_clip_norm encoder_scale target_l0 bandwidth initial_threshold *_factor",
    ),
    (
        "expected at least 0",
        lambda v: v >= 0,
        "warmup_tokens decay_tokens mutual_tokens ce_tokens exponent shift *coef",
    ),
    ("expected at least 3", lambda v: v >= 3, "context_tokens"),  # BOS, one, and its next
    ("expected at least 1", lambda v: v >= 1, "tokens k_aux threads rows_per_forward *_tokens"),
)
"""What a number may be, by the option's name in any node; the first line that fits holds."""

AT_MOST = (
    ("k", "d_sae"),
    ("*.k", "d_sae"),
    ("*.target_l0", "d_sae"),
    ("*.k_aux", "d_sae"),
    ("stream.batch_tokens", "stream.chunk_tokens"),
    ("stream.batch_tokens", "training.tokens"),
    ("stream.batch_tokens", "evaluation.tokens"),
    ("training.dead_window_tokens", "training.tokens"),
    ("*.mutual_tokens", "training.tokens"),
    ("evaluation.ce_tokens", "evaluation.tokens"),
)
"""Pairs of options whose first may not exceed the second."""


def obey(config: Config) -> None:
    """Raise ConfigError with the first complaint of any rule."""
    for rule in RULES:
        for complaint in rule(config):
            raise ConfigError(complaint)


def options(config: Config) -> Iterator[tuple[str, Any]]:
    """Walk through the options that we know, as dotted path and value."""
    for key, value in config.items():
        if not isinstance(value, dict):
            yield key, value
        elif key in NODES:
            yield from ((f"{key}.{name}", option) for name, option in value.items())


def _number(value: object) -> bool:
    return type(value) in (int, float)


def names_are_legal(config: Config) -> Iterator[str]:
    """The name is a folder's and a tracker group's at once."""
    name = config["name"]
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name):
        yield (
            f"name is {name!r}, expected at most 100 letters, digits and '.', '_', '-', "
            "not beginning with '.' or '-'."
        )


def devices_are_known(config: Config) -> Iterator[str]:
    device = config["device"]
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", device):
        yield f"device is {device!r}, expected auto, cpu, cuda, cuda:N or mps."


def numbers_are_in_range(config: Config) -> Iterator[str]:
    for path, value in options(config):
        name = path.rpartition(".")[2]
        fitting = (lim for lim in LIMITS if any(fnmatchcase(name, n) for n in lim[2].split()))
        for text, allowed, _ in islice(fitting, 1):
            if _number(value) and not allowed(value):
                yield f"{path} is {value:.12g}, {text}."


def lengths_fit(config: Config) -> Iterator[str]:
    found = dict(options(config))
    for small, large in AT_MOST:
        end = small.removeprefix("*")
        for path, value in found.items():
            matches = path == small or (small.startswith("*") and path.endswith(end))
            if matches and _number(value) and value > found[large]:
                yield f"{path} is {value:.12g}, expected at most {large}, which is {found[large]}."


def warmup_and_decay_fit(config: Config) -> Iterator[str]:
    training = config["training"]
    warmup, decay, tokens = (training[f"{name}tokens"] for name in ("warmup_", "decay_", ""))
    if warmup + decay > tokens:
        yield (
            f"training.warmup_tokens is {warmup} and training.decay_tokens is {decay}: "
            f"together expected at most training.tokens, which is {tokens}."
        )


def budgets_fill_a_slot(config: Config) -> Iterator[str]:
    """A budget below one token-latent pair a batch would leave latents dead by construction."""
    batch = config["stream"]["batch_tokens"]
    for group in METHOD:
        node = config[group]
        if not _number(node.get("k")):
            continue
        if round(node["k"] * batch) < 1:
            yield (
                f"{group}.k is {node['k']:.12g}: with stream.batch_tokens {batch} that is no "
                "latent in a whole batch; give a larger k or larger batches."
            )
        elif _number(node.get("exponent")) and _number(node.get("shift")):
            yield from _zipf_fills_a_slot(group, node, config["d_sae"], batch)


def _zipf_fills_a_slot(group: str, node: Config, d_sae: int, batch: int) -> Iterator[str]:
    density = rarest_density(d_sae, node["k"], node["exponent"], node["shift"])
    needed = math.ceil(1 / density - 1e-9) if density > 0 else math.inf
    if batch < needed:
        yield (
            f"stream.batch_tokens is {batch}: the rarest latent would get "
            f"{density * batch:.2g} tokens of a batch, and needs 1. Allowed is "
            f"stream.batch_tokens={needed} or more, or a larger k or {group}.shift, "
            f"or a smaller d_sae or {group}.exponent."
        )


@cache
def rarest_density(d_sae: int, k: int | float, exponent: int | float, shift: int | float) -> float:
    """Return the least of the densities min(1, C (rank + shift)^-exponent), which sum to k."""
    import numpy as np  # here, since most configs have no use for it

    weights = (np.arange(1, d_sae + 1) + shift) ** -exponent
    rest = weights[::-1].cumsum()[::-1]  # rest[n]: what follows the first n ranks
    budget = k - np.arange(d_sae)  # what the first n ranks leave when they take every token
    capped = int(np.argmax(budget * weights <= rest))
    return float(budget[capped] * weights[-1] / rest[capped]) if rest[capped] > 0 else 0.0


def activation_files_exist(config: Config) -> Iterator[str]:
    for name in ("path", "held_out_path"):
        path = config["target_model"].get(name)
        if not isinstance(path, str):
            continue
        if Path(path).suffix not in (".npy", ".safetensors"):
            yield f"target_model.{name} is {path!r}, expected a .npy or .safetensors file."
        elif not Path(path).is_file():
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
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return None  # the loader will say more
    config = config.get("text_config") or config
    names = ("n_layer", "num_hidden_layers", "n_layers", "num_layers")
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)


def model_folder(model: str) -> Path | None:
    """Find a model's config.json: embedded, a folder, or the Hugging Face cache."""
    if model == "embedded":
        return EMBEDDED
    if (Path(model).expanduser() / "config.json").is_file():
        return Path(model).expanduser()
    # TransformerLens knows short names, so `gpt2` may lie in the cache as `openai-community/gpt2`.
    names = (f"models--{model.replace('/', '--')}", f"models--*--{model}")
    hits = [h for n in names for h in _hub_cache().glob(f"{n}/snapshots/*/config.json") if model]
    return hits[0].parent if hits else None


def _hub_cache() -> Path:
    home = (
        os.environ.get("HF_HOME")
        or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    )
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


def _model_can_be_had(model: str) -> Iterator[str]:
    """Refuse what is neither here nor to be had; what the hub may know is left to loading."""
    what = f"target_model.model is {model!r}: "
    if Path(model).is_dir():
        yield f"{what}the folder has no config.json."
    elif not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.startswith("."):
        yield f"{what}there is no such folder."
    elif os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield f"{what}neither a folder nor in the Hugging Face cache, and HF_HUB_OFFLINE is set."
    elif not _hub_answers():
        host = urlsplit(_hub_address()).hostname
        yield f"{what}neither a folder nor in the Hugging Face cache, and {host} does not answer."


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


RULES: tuple[Rule, ...] = (
    names_are_legal,
    devices_are_known,
    numbers_are_in_range,
    lengths_fit,
    warmup_and_decay_fit,
    budgets_fill_a_slot,
    activation_files_exist,
    models_and_hooks_exist,
)
