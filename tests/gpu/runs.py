"""Runs of all methods, at the sizes of `sizes`."""

from pathlib import Path

from sae_sweeps.config.options import RunConfig
from tests.support.small import small_run

from .sizes import ALLOCATED, PENALISED, Size

METHODS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*ALLOCATED, *PENALISED), ()),
    "feature_choice": ("allocator=feature_choice_scratch",),  # what it does after its start
}
"""And the words for what is looked at of each."""


def config_of(size: Size, *words: str) -> RunConfig:
    """The config of the run that `words` describe."""
    options = {
        "d_sae": size.d_sae,
        "k": size.k,
        "stream.batch_tokens": size.batch,
        "stream.chunk_tokens": 8 * size.batch,
        "training.precision": "auto",
        "training.tokens": 100_000_000,
        "stream.repeat": True,
    }
    given = [f"{name}={value}" for name, value in options.items()]
    return small_run(Path("unused"), *given, *words).config
