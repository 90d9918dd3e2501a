"""Finds files, and writes them whole or not at all.

Writing is done beside a file's place, flushed to disk, then renamed.
"""

import hashlib
import json
import logging
import os
import re
import subprocess
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from sae_sweeps.errors import ConfigError, one_line

PLAIN_NAME = re.compile(r"[^./][^/]{0,249}")


def plain_name(text: object) -> str:
    """Return the name of something in a folder, as a file of somebody else's may say it.

    Raises:
        ConfigError: it would lead elsewhere (`..`, `a/b`, `/a`), is hidden, or no name at all.
    """
    if isinstance(text, str) and PLAIN_NAME.fullmatch(text) and text.isprintable():
        return text
    raise ConfigError(f"{one_line(repr(text))} is not a name in a folder.")


def place_of(text: str) -> Path | None:
    """Give the path that a text names, unless no system could look for it."""
    try:
        place = Path(text).expanduser()
        place.exists()
    except (OSError, RuntimeError):  # too long, or the home of nobody
        return None
    return place


def is_same(one: Path, other: Path) -> bool:
    """Say whether two paths lead to one file or folder that is there."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def has_open(pid: int, path: Path) -> bool:
    """Say whether a process of this machine has a file open; not where it cannot be told."""
    handles = Path(f"/proc/{pid}/fd")
    if handles.parents[1].is_dir():
        with suppress(OSError):  # it has ended, or is another user's
            return any(is_same(handle, path) for handle in handles.iterdir())
        return False
    command = ["lsof", "-t", "--", str(path)]  # macOS has no /proc
    try:
        return str(pid) in subprocess.run(command, capture_output=True, text=True).stdout.split()
    except OSError:
        return False


def write_text(path: Path, text: str) -> None:
    """Put `text` at `path`; a crash leaves the old file or the new one, never half of one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, obj: object) -> None:
    """Put `obj` at `path` as indented JSON; nan and infinity are refused."""
    write_text(path, json.dumps(obj, indent=1, allow_nan=False) + "\n")


def digest(value: object) -> str:
    """Hash plain data: 64 hex digits, the same on every machine."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


@contextmanager
def replacing(path: Path) -> Generator[Path, None, None]:
    """Give a temporary path beside `path` that takes its place when the block ends well.

    For writers that want a path themselves (pictures, weights). The folder is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays, since some writers choose their format by it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp gives 0600, which others could not read
        _to_disk(temporary)
        temporary.replace(path)
        _to_disk(path.parent)  # without this a power cut may forget the rename
    except OSError as error:
        error.filename = str(path)  # it names the temporary file, or none if the disk is full
        raise
    finally:
        temporary.unlink(missing_ok=True)


class LogFile(logging.FileHandler):
    """A log file; a line that finds the disk full is left out, and disturbs nobody."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Do nothing, where `logging` would print a traceback."""

    def close(self) -> None:
        """Close the file, and give up what could not be written."""
        with suppress(OSError):
            super().close()


def is_locked(path: Path) -> bool:
    """Say whether a process holds the lock file at `path`, on this machine or a shared folder."""
    import fcntl

    try:
        with path.open("rb") as file:
            # Shared and let go at once: reading needs no right to write, and disturbs nobody.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _to_disk(path: Path) -> None:
    """Flush a file's or a folder's contents past the operating system's cache."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """Read the process's file-creation mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
