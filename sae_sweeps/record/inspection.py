"""Looks through a sweep's folder before anything in it is opened: a path may lead elsewhere."""

import os
from collections.abc import Iterator
from pathlib import Path

from sae_sweeps.errors import ConfigError

LET_BE = "*run-*/logs"
"""W&B's links to its own logs, which are elsewhere once a folder is copied; nobody opens them."""
W_AND_B_SETTINGS = ("wandb/settings", ".wandb/settings")
"""What W&B looks for in the folder that it is called in: its server's address, among others."""


def inspect(folder: Path) -> None:
    """Refuse a folder in which a path leads elsewhere; it may be somebody else's.

    Raises:
        ConfigError: for a link out of the folder, for what is neither a file nor a folder (a pipe
            would be waited at), for a folder that cannot be listed, and for a file that would name
            W&B's server, which gets the user's key.
    """
    home = folder.resolve()
    for entry in _entries(home):
        path = Path(entry)
        if entry.is_symlink() and not _is_within(path, home):
            text = f"a link leads out of the sweep's folder, {path} to {path.readlink()}"
            raise ConfigError(f"{text}: put what is there in its place, or remove it.")
        if not entry.is_symlink() and not entry.is_dir() and not entry.is_file():
            raise ConfigError(f"{path} is neither a file nor a folder: remove it.")
        if entry.name == "settings" and any(map(path.match, W_AND_B_SETTINGS)):
            text = f"{path} says which server gets your W&B key, which no sweep's folder may"
            raise ConfigError(f"{text}: remove it.")


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Walk through all that a folder holds, links as links; raises ConfigError if it cannot."""
    try:
        with os.scandir(folder) as entries:
            found = [*entries]
    except (FileNotFoundError, NotADirectoryError):  # it has been moved away meanwhile
        return
    except OSError as error:
        if isinstance(error, PermissionError) and not os.access(folder, os.X_OK):
            return  # nor can anything in it be opened
        raise ConfigError(f"cannot read {folder}: {error.strerror}.") from error
    for entry in found:
        yield entry
        if entry.is_dir(follow_symlinks=False) and not Path(entry).match(LET_BE):
            yield from _entries(Path(entry))


def _is_within(link: Path, home: Path) -> bool:
    try:
        return link.resolve().is_relative_to(home)
    except (OSError, RuntimeError):  # links in a circle
        return False
