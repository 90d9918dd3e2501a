"""Whether text or a data set can be had, and tokens suffice; before anything starts, no torch."""

import os
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from sae_sweeps.config.options import RunConfig
from sae_sweeps.data import documents, token_cache
from sae_sweeps.errors import ConfigError
from sae_sweeps.system import files, hugging_face
from sae_sweeps.target_model import facts

Config = Mapping[str, Any]


def text_files_exist(config: Config) -> Iterator[str]:
    node = config["data"]
    if fault := _fault(node["path"], node["sample_by"], Path.cwd()):
        yield fault


@cache
def _fault(path: str, sample_by: str, _where: Path) -> str:
    """Say once for all points of a sweep what is wrong with a path, seen from a folder."""
    try:
        found = documents.text_files(path)
    except ConfigError as error:
        return str(error)
    whole = sample_by == "document" and documents.READERS[found[0].suffix] == "text"
    if whole and len(found) == 1:
        return (
            f"data.sample_by is 'document', and {path!r} is a single one, which cannot be both "
            "trained on and held out; expected paragraph or line, or more files."
        )
    return ""


def tokens_suffice(config: Config) -> Iterator[str]:
    """What will be packed is known before; what the data hold is not."""
    packed, tokens = config["data"]["train_tokens"], RunConfig.of(config).total_tokens
    if packed is not None and tokens > packed and not config["stream"]["repeat"]:
        yield (
            f"training.tokens is {tokens}, expected at most data.train_tokens, which is {packed}; "
            "or set stream.repeat=true to go over them again."
        )


def cache_bytes(config: Config, source: dict[str, Any], wanted: int | None) -> int | None:
    """Bytes of token rows that are yet to be packed; None where nobody knows how many there are.

    Args:
        source: what the documents are a function of.
        wanted: training tokens to pack, if that is known.
    """
    node = config["data"]
    if token_cache.packed(source, node):
        return 0
    if wanted is None:
        return None
    known = facts.of(config["target_model"])
    wide = (facts.number(known, "vocab_size") or 2**16) >= 2**16
    tokens, seq = wanted + (node["held_out_tokens"] or 0), node["context_tokens"]
    return (4 if wide else 2) * tokens * seq // (seq - 1)


def data_sets_can_be_had(config: Config) -> Iterator[str]:
    """Refuse what is neither packed nor here nor to be had."""
    node = config["data"]
    dataset = node["dataset"]
    repository = hugging_face.Repository("data.dataset", dataset, node["revision"])
    if (place := files.place_of(dataset)) and place.is_dir():
        if node["revision"] is not None:
            yield (
                f"data.revision is {node['revision']!r}, but only data sets of the hub have "
                f"revisions, and {dataset!r} is a folder; expected null."
            )
    elif not hugging_face.is_name(dataset):
        yield f"{repository.what}there is no such folder."
    elif not token_cache.packed(documents.hub_source(node), node):
        yield from _hub_has_it(repository)


def _hub_has_it(repository: hugging_face.Repository) -> Iterator[str]:
    """Refuse a data set that is not packed, and neither in a cache nor given by the hub."""
    if _is_cached(repository):
        return
    if silence := hugging_face.silence():
        of = f" at revision {repository.revision!r}" if repository.revision else ""
        yield f"{repository.what}neither a folder nor packed before{of}, and {silence}."
    elif refusal := hugging_face.refusal(repository):
        yield refusal


def _is_cached(repository: hugging_face.Repository) -> bool:
    """Whether `datasets` has a copy; which of its variants and splits is judged in reading.

    It would read whatever commit it has, so a revision must be known to be that.
    """
    own = os.environ.get("HF_DATASETS_CACHE") or hugging_face.cache_folder().parent / "datasets"
    folders = [folder for folder in Path(own).expanduser().glob("*") if folder.is_dir()]
    found = [folder for folder in folders if _bare(folder.name) == _bare(repository.name)]
    if repository.revision is None:
        return bool(found)
    place = hugging_face.cache_folder() / f"datasets--{repository.name.replace('/', '--')}"
    commit = hugging_face.commit_of(place, repository.revision)
    return any(copy.name == commit for folder in found for copy in folder.glob("*/*/*"))


def _bare(name: str) -> str:
    """Leave out what `datasets` changes in a name to make it a folder's."""
    return re.sub("[/_]", "", name).lower()
