"""Runs `wandb sync`, for one sweep at a time."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from sae_sweeps.errors import ConfigError

LEAVE_LIMIT_S = 5.0
DATA = ("DATA", "CACHE", "ARTIFACT")


@contextmanager
def alone(folder: Path) -> Generator[int]:
    """Hold a sweep's `wandb/` against other uploads, and give the lock's open file.

    A process that inherits it keeps holding it, should this one be killed.

    Raises:
        ConfigError: if another process uploads from it.
    """
    handle = os.open(folder / ".sync.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    except BlockingIOError:
        raise ConfigError(f"{folder.parent} is being uploaded by another process.") from None
    finally:
        os.close(handle)


@contextmanager
def uploading(
    folder: Path, logs: Sequence[Path], lock: int
) -> Generator[tuple[subprocess.Popen[bytes], IO[str]]]:
    """Start `wandb sync` on the absolute folders of some logs, and end it with the block.

    Gives the process and what it writes. It never asks, and uploads the logs of one run in order.
    """
    # -P: no module is taken from the folder that this is called in, which has one called wandb.
    command = [sys.executable, "-P", "-m", "wandb", "sync", "--include-online", *map(str, logs)]
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            command,
            env=_environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[lock],
        )
        try:
            yield process, output
        finally:
            process.terminate()
            try:
                process.wait(LEAVE_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment(folder: Path) -> dict[str, str]:
    """Name the folders where files of tables wait, as when they were logged.

    W&B's own process of this one is not to be shared: it would go on after `wandb sync` is ended.
    """
    mine = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    places = {f"WANDB_{name}_DIR": str(folder / f".{name.lower()}") for name in DATA}
    said = {"WANDB_SILENT": "false"}  # what it complains of is read
    return {**places, "WANDB_ERROR_REPORTING": "false", **mine, **said}


def errors(output: IO[str], ids: Sequence[str]) -> dict[str, str]:
    """Read what `wandb sync` complained of, by W&B run; what names none is about a lone run."""
    output.seek(0)
    found: dict[str, str] = {}
    for line in output:
        _, sign, text = line.partition("ERROR ")
        about = [id for id in ids if id in line] or (ids if len(ids) == 1 else [])
        for id in about if sign else []:
            found[id] = text.rpartition(f"{id}] ")[2].strip()
    return found
