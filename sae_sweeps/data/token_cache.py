"""Where packed token rows lie on disk, and which of them are whole; no torch.

A matrix's folder is `tokens/<key>/`: `train.npy`, `held_out.npy` and, written last, the manifest,
which says that they are whole. While they grow, `progress.json` says how far they are.
"""

import hashlib
import json
import logging
import os
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sae_sweeps.errors import ConfigError
from sae_sweeps.system import files, interrupt

log = logging.getLogger("sae_sweeps.data")

FORMAT = 1
"""Raised whenever the same options would give other rows."""
LATER = {"special_strings": True}
"""Options of packing that came later: what their absence means."""
WAIT_S = 1.0
"""Between two looks whether a signal came, for who waits for another process."""
MANIFEST, PROGRESS = "manifest.json", "progress.json"


def root() -> Path:
    """Give the folder of all matrices: SAE_SWEEPS_CACHE, else the user's cache."""
    own = os.environ.get("SAE_SWEEPS_CACHE")
    users = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(own or Path(users) / "sae_sweeps").expanduser() / "tokens"


def read(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is none, or a torn one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def packed(source: dict[str, Any], node: dict[str, Any]) -> bool:
    """Tell whether a source was packed before under a config node's options.

    For whatever tokenizer: that is known only once the target model is loaded.
    """
    for path in root().glob(f"*/{MANIFEST}"):
        manifest = read(path) or {}
        found = manifest.get("packing")
        packing = LATER | found if isinstance(found, dict) else {}
        same = bool(packing) and packing == {name: node.get(name) for name in packing}
        if same and manifest.get("source") == source:
            return True
    return False


def whole(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a folder whose matrices are as they were written; else None."""
    manifest = read(folder / MANIFEST)
    try:
        hashes = {name: entry["sha256"] for name, entry in (manifest or {})["splits"].items()}
        sound = all(sha256(folder / f"{name}.npy") == hash for name, hash in hashes.items())
    except (OSError, KeyError, TypeError, AttributeError):
        return None
    return manifest if sound else None


def sha256(path: Path) -> str:
    """Hash a file: 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def held(folder: Path) -> Generator[None, None, None]:
    """Hold a folder's lock, which the system lets go when a process dies.

    Raises:
        ConfigError: the cache cannot be written.
    """
    with writing():
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
    seconds = 0.0
    while not lock.is_locked:
        try:
            with writing():
                lock.acquire(timeout=seconds, poll_interval=WAIT_S / 10)
        except Timeout:
            interrupt.check()
            if not seconds:
                log.info("data: waits for another process, which packs the same tokens")
            seconds = WAIT_S
    try:
        yield
    finally:
        lock.release()


@contextmanager
def writing() -> Generator[None, None, None]:
    """Word what a full or read-only disk answers."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        raise ConfigError(
            f"data: the token cache {root()} cannot be written ({error.strerror or error}); "
            "the variable SAE_SWEEPS_CACHE names another folder."
        ) from error


def resumable(folder: Path, splits: Iterable[str]) -> dict[str, Any] | None:
    """Read how far a build came; None, and an empty folder, where it cannot go on.

    A folder with a manifest was whole and is damaged: nothing of it is kept.
    """
    progress = read(folder / PROGRESS)
    try:
        sizes = {name: (progress or {})[name]["bytes"] for name in splits}
        longs = [(folder / f"{name}.npy").stat().st_size >= size for name, size in sizes.items()]
        if all(longs) and not (folder / MANIFEST).exists():
            return progress
    except (OSError, KeyError, TypeError):
        pass  # nothing was begun, or not by us
    for path in folder.iterdir():
        path.unlink()
    return None


def commit(folder: Path, manifest: dict[str, Any]) -> None:
    """Declare a folder's matrices whole."""
    files.write_json(folder / MANIFEST, manifest)
    (folder / PROGRESS).unlink(missing_ok=True)
