"""Rules about data: files that are there, data sets that can be had, tokens enough; no torch."""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from sae_sweeps.data import documents, token_cache
from sae_sweeps.run import ConfigError, total_tokens
from sae_sweeps.target_rules import HUB_NAME, hub_cache, hub_silence, model_folder, number, place_of

Config = dict[str, Any]


def text_files_exist(config: Config) -> Iterator[str]:
    node = config["data"]
    path = node.get("path") if "sample_by" in node else None
    if isinstance(path, str) and (fault := _fault(path, Path.cwd())):
        yield fault


@cache
def _fault(path: str, _where: Path) -> str:
    """Say once for all points of a sweep what is wrong with a path, seen from a folder."""
    try:
        documents.text_files(path)
    except ConfigError as error:
        return str(error)
    return ""


def contexts_fit(config: Config) -> Iterator[str]:
    """The model's config says how much it reads, which spares packing rows that are too long."""
    tokens, model = config["data"].get("context_tokens"), config["target_model"].get("model")
    folder = model_folder(model) if isinstance(model, str) else None
    most = number(folder, "n_positions", "max_position_embeddings") if folder else None
    if isinstance(tokens, int) and most is not None and tokens > most:
        yield f"data.context_tokens is {tokens}, but the model reads at most {most}."


def tokens_suffice(config: Config) -> Iterator[str]:
    """What will be packed is known before; what the data hold is not."""
    packed, tokens = config["data"].get("train_tokens"), total_tokens(config)
    if isinstance(packed, int) and tokens > packed and not config["stream"]["repeat"]:
        yield (
            f"training.tokens is {tokens}, expected at most data.train_tokens, which is {packed}; "
            "or set stream.repeat=true to go over them again."
        )


def data_sets_can_be_had(config: Config) -> Iterator[str]:
    """Refuse what is neither packed nor here nor to be had."""
    node = config["data"]
    dataset = node.get("dataset")
    if not isinstance(dataset, str) or not {"config", "split", "revision"} <= set(node):
        return
    what = f"data.dataset is {dataset!r}: "
    if (place := place_of(dataset)) and place.is_dir():
        return
    if not re.fullmatch(HUB_NAME, dataset) or dataset.startswith("."):
        yield f"{what}there is no such folder."
        return
    here = token_cache.packed(documents.hub_source(node), node) or _is_cached(dataset)
    if not here and (silence := hub_silence()):
        yield f"{what}neither a folder nor packed before, and {silence}."


def _is_cached(dataset: str) -> bool:
    """Whether `datasets` has a copy; which of its variants and splits is judged in reading."""
    own = os.environ.get("HF_DATASETS_CACHE") or hub_cache().parent / "datasets"
    folders = Path(own).expanduser().glob("*")
    return _bare(dataset) in {_bare(folder.name) for folder in folders if folder.is_dir()}


def _bare(name: str) -> str:
    """Leave out what `datasets` changes in a name to make it a folder's."""
    return re.sub("[/_]", "", name).lower()
