"""Packs a folder of text into token rows, as a process of its own that a test may kill.

Its words: FOLDER SECONDS_PER_BATCH
"""

import logging
import sys
import time
from typing import Any

from transformers import AutoTokenizer

from sae_sweeps.data import token_rows
from sae_sweeps.data.text import Text
from sae_sweeps.embedded import MODEL


def main() -> None:
    """Pack, with a pause after each batch."""
    folder, seconds = sys.argv[1:]
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build: Any = token_rows._Build  # pyright: ignore[reportPrivateUsage]
    add = build._add

    def added(*given: Any) -> None:
        add(*given)
        time.sleep(float(seconds))  # in which a kill can come

    build._add = added
    data = Text(
        path=folder,
        column="text",
        sample_by="document",
        context_tokens=32,
        separator="bos",
        special_strings=False,
        held_out_share=0.3,
        train_tokens=None,
        held_out_tokens=None,
    )
    data.rows("train", AutoTokenizer.from_pretrained(MODEL))
