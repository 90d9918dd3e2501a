"""Tells how a model's download goes; the libraries' own bars would tear the sweep's display."""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger("sae_sweeps.target_model")

EVERY_S = 5.0
"""Between two lines"""
LEAST_BYTES = 2**24
"""Growth that is worth a line"""


@contextmanager
def told(name: str, folder: Path) -> Generator[None]:
    """Log how much of a model has come into its folder in the cache, while the body loads it."""
    began, before, ended = time.monotonic(), _size(folder), threading.Event()

    def watch() -> None:
        last = before
        while not ended.wait(EVERY_S):
            if (now := _size(folder)) - last >= LEAST_BYTES:
                log.info("target model: %.2f GB of %s fetched so far", (now - before) / 1e9, name)
                last = now

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if (grown := _size(folder) - before) >= LEAST_BYTES:
            seconds = time.monotonic() - began
            log.info("target model: %.2f GB of %s fetched in %.0f s", grown / 1e9, name, seconds)


def _size(folder: Path) -> int:
    """Bytes of the files in a folder, those being written included; links do not count."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += 0 if path.is_symlink() or path.is_dir() else path.stat().st_size
        except OSError:  # it was renamed meanwhile
            continue
    return total
