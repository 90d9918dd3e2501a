"""What W&B's own files say: which rows of a run it has, and whether `wandb sync` can read them.

W&B writes what it was told into `<sweep>/wandb/[offline-]run-<time>-<id>/run-<id>.wandb`, one such
fragment per attempt: a log in LevelDB's format of protobuf records, flushed about every second.
What a kill leaves of it stops `wandb sync`, measured with wandb 0.31: a log with no record in it
stops the upload of all runs of the folder, and one that ends within a record that of all later
fragments of the same run.
"""

import importlib
import os
import struct
import time
import zlib
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAGIC, FILE_HEAD, BLOCK, CHUNK_HEAD = b":W&B", 7, 32768, 7
FULL, LAST = 1, 4
ASIDE = ".set-aside"
WRITER_LIMIT_S = 10.0  # W&B's process ends within a second of the one that started it


@dataclass(frozen=True)
class Fragment:
    """The log of one attempt."""

    path: Path
    whole: int
    """How many bytes from the start hold nothing but whole records."""
    begun: bool
    """Whether it says which run it is of, without which it is good for nothing."""
    tokens: int
    """`tokens_seen` of its last row; 0 without rows."""

    @property
    def settled(self) -> bool:
        """Whether the server has all of it."""
        synced = _beside(self.path, "synced")  # written even if the log goes on
        return _beside(self.path, "uploaded").exists() or (
            synced.exists() and synced.stat().st_mtime >= self.path.stat().st_mtime
        )

    @property
    def partly_sent(self) -> bool:
        """Whether the server may have some of it, but nobody here knows how much."""
        tried = any(_beside(self.path, end).exists() for end in ("synced", "syncstate"))
        online = not self.path.parent.name.startswith("offline-")
        return not self.settled and (online or tried)


def fragments(folder: Path, id: str, end: str = "") -> list[Fragment]:
    """Read what earlier attempts left in the `wandb/` folder of a sweep.

    Of the W&B run `id`, or, with a pattern such as `-*` as `end`, of those whose ids continue so.
    """
    paths = sorted(folder.glob(f"*run-*-{id}*/run-{id}{end}.wandb"))
    deadline = time.monotonic() + WRITER_LIMIT_S
    while paths and _open_somewhere(paths) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [read(path) for path in paths]


def read(path: Path) -> Fragment:
    """Read one log as far as it is whole."""
    payloads = list(whole_records(path.read_bytes()))
    records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")

    def parsed(word: bytes, payload: bytes) -> Any:
        return records.Record.FromString(payload) if word in payload else records.Record()

    id = path.stem.removeprefix("run-").encode()
    begun = any(parsed(id, payload).HasField("run") for _, payload in payloads)
    rows = (parsed(b"tokens_seen", payload) for _, payload in reversed(payloads))
    tokens = next((_tokens(row) for row in rows if row.HasField("history")), 0)
    return Fragment(path, payloads[-1][0] if payloads else 0, begun, tokens)


def mend(fragment: Fragment) -> None:
    """Cut off a record that a kill tore, or set a log with none aside, for `wandb sync`'s sake.

    A log that a process of this machine has open is left as it is.
    """
    if fragment.settled or _open_somewhere([fragment.path]):
        return
    if not fragment.begun:
        set_aside(fragment)
    elif fragment.path.stat().st_size > fragment.whole:
        os.truncate(fragment.path, fragment.whole)


def set_aside(fragment: Fragment) -> None:
    """Move a fragment to where `wandb sync` does not look; W&B's process may go on writing."""
    folder = fragment.path.parent
    target = folder.parent / ASIDE / f"{folder.name}-{time.time_ns()}"  # as seconds may repeat
    target.parent.mkdir(exist_ok=True)
    folder.rename(target)


def hide(fragment: Fragment) -> None:
    """Have `wandb sync` pass over a fragment by its own mark, too old to be taken for true."""
    mark = _beside(fragment.path, "synced")
    mark.touch()
    os.utime(mark, (0, 0))


def mark_uploaded(path: Path) -> None:
    """Note that the server took all of an online run's log."""
    _beside(path, "uploaded").touch()


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f"{path.name}.{end}")


def _tokens(record: Any) -> int:
    for item in record.history.item:
        if (list(item.nested_key) or [item.key]) == ["tokens_seen"]:
            return int(item.value_json)
    return 0


def whole_records(content: bytes) -> Generator[tuple[int, bytes]]:
    """Give each whole record with its end, up to the first thing that is none.

    A record is one `FULL` chunk or several, of which one is the `LAST`. No chunk crosses the edge
    of a block; less space than a chunk's head before an edge is filled up.
    """
    position, parts = FILE_HEAD, list[bytes]()
    if not content.startswith(MAGIC):
        return
    while True:
        left = BLOCK - position % BLOCK
        position += left if left < CHUNK_HEAD else 0
        head = content[position : position + CHUNK_HEAD]
        if len(head) < CHUNK_HEAD:
            return
        checksum, size, kind = struct.unpack("<IHB", head)
        start, position = position + CHUNK_HEAD, position + CHUNK_HEAD + size
        chunk = content[start:position]
        if len(chunk) < size or zlib.crc32(chunk, zlib.crc32(head[-1:])) != checksum:
            return
        parts.append(chunk)
        if kind in (FULL, LAST):
            yield position, b"".join(parts)
            parts = []


def _open_somewhere(paths: list[Path]) -> bool:
    """Whether a process of ours on this machine has one of the files open; unknown means no."""
    wanted = {str(path.resolve()) for path in paths}
    for handles in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # another user's, or it has just ended
            for handle in handles.iterdir():
                with suppress(FileNotFoundError):  # closed since
                    if str(handle.readlink()) in wanted:
                        return True
    return False
