"""What W&B's own files say: which rows of a run it has, and whether `wandb sync` can read them.

W&B writes what it was told into `<sweep>/wandb/[offline-]run-<time>-<id>/run-<id>.wandb`, one such
fragment per attempt: a log in LevelDB's format of protobuf records, flushed every two seconds.
What a kill leaves of it stops `wandb sync`, measured with wandb 0.31: a log with no record in it
stops the upload of all runs of the folder, and one that ends within a record that of all later
fragments of the same run.
"""

import importlib
import json
import os
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.tracking.wandb.log_format import FILE_HEAD, whole_records, written

ASIDE, REST = ".set-aside", ".rest"
STAGING = ("artifacts", "staging")
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
        if _beside(self.path, "unverified").exists():
            return False
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
    while paths and being_written(paths) and time.monotonic() < deadline:
        time.sleep(0.05)
    return [read(path) for path in paths]


@dataclass(frozen=True)
class Content:
    """What a fragment holds of which W&B run."""

    fragment: Fragment
    run: tuple[str, str, str]
    """Entity (empty: that of whose key it is), project and id."""
    started: float
    rows: int
    before: int | None
    """How many rows of the run come before its own, as W&B found; None where it never asked."""
    online: bool
    moved: list[str]
    """Files of tables that it names elsewhere than in the sweep, as when that is copied."""
    summary: dict[str, Any]
    """What it says of the whole run, by name."""


def read(path: Path) -> Fragment:
    """Read one log as far as it is whole; raises ConfigError for records that are none of W&B's."""
    payloads = list(whole_records(path.read_bytes()))
    records = _records()

    def parsed(word: bytes, payload: bytes) -> Any:
        return records.Record.FromString(payload) if word in payload else records.Record()

    id = path.stem.removeprefix("run-").encode()
    with _worded(path):
        begun = any(parsed(id, payload).HasField("run") for _, payload in payloads)
        rows = (parsed(b"tokens_seen", payload) for _, payload in reversed(payloads))
        tokens = next((_tokens(row) for row in rows if row.HasField("history")), 0)
    return Fragment(path, payloads[-1][0] if payloads else 0, begun, tokens)


def content(fragment: Fragment) -> Content:
    """Read what one log holds that has begun.

    Raises:
        OSError: if it cannot be read.
        ConfigError: if it is another run's than it is called after, or W&B would upload from it
            other files than the sweep's.
    """
    path = fragment.path
    run, rows, first, staged, summary = None, 0, None, list[str](), dict[str, Any]()
    with _worded(path):
        for payload in _payloads(path):
            record = _records().Record.FromString(payload)
            kind = record.WhichOneof("record_type")
            _require_own(record, kind)
            if kind == "run":
                run = run or record.run
            elif kind == "history":
                rows += 1
                first = record.history.step.num if first is None else first
            elif kind == "artifact":
                staged += [entry.local_path for entry in record.artifact.manifest.contents]
            elif kind == "summary":
                told = record.summary.update
                summary |= {_name(item): json.loads(item.value_json) for item in told}
        if run is None or run.run_id != path.stem.removeprefix("run-"):
            raise ValueError("which run it is of is not what it is called after")
    before = _starting_step(path)
    online = not path.parent.name.startswith("offline-")
    if before is None and online:
        before = first
    moved = [name for name in staged if name and not _is_staged(fragment, name)]
    where = run.entity, run.project, run.run_id
    started = run.start_time.ToNanoseconds() / 1e9
    return Content(fragment, where, started, rows, before, online, moved, summary)


@contextmanager
def _worded(path: Path) -> Generator[None]:
    """Word what is wrong with a log's records; the folder may be anybody's, and so its logs."""
    from google.protobuf.message import DecodeError

    try:
        yield
    except (DecodeError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not as W&B writes it: {one_line(error)}.") from error


def _require_own(record: Any, kind: str | None) -> None:
    """Refuse a record by which W&B would upload files from elsewhere; raises ValueError."""
    if kind == "tbrecord":
        raise ValueError("it names a folder of TensorBoard's, which no run of a sweep has")
    if kind == "artifact" and record.artifact.manifest.manifest_file_path:
        raise ValueError(f"it names {record.artifact.manifest.manifest_file_path!r}")
    for file in record.files.files if kind == "files" else ():
        if Path(file.path).is_absolute() or ".." in Path(file.path).parts:
            raise ValueError(f"it names {file.path!r}, which is not in its folder")


def _is_staged(fragment: Fragment, name: str) -> bool:
    """Whether a table's file is where W&B puts it: in the sweep, or where the user has it put."""
    places = [present(fragment, name).parent]
    if own := os.environ.get("WANDB_DATA_DIR"):
        places.append(Path(own, *STAGING))
    return Path(name).parent in places and Path(name).exists()


def present(fragment: Fragment, name: str) -> Path:
    """Tell where a file of a table lies in the sweep's folder as it is now."""
    home = fragment.path.parents[1]
    return (home.parent if home.name == REST else home).joinpath(".data", *STAGING, Path(name).name)


def tokens_at(path: Path, row: int) -> int:
    """Read `tokens_seen` of the row of this number, from 0, of one log."""
    records = (_records().Record.FromString(payload) for payload in _payloads(path))
    return [_tokens(record) for record in records if record.HasField("history")][row]


def _payloads(path: Path) -> Generator[bytes]:
    for _, payload in whole_records(path.read_bytes()):
        yield payload


def rest(fragment: Fragment, sent: int) -> Path:
    """Write a fragment anew without its first `sent` rows, which the server has.

    Everything else, such as its summary, arrives again and replaces itself. Files of tables are
    looked for where they lie now.

    Returns:
        The folder of the new fragment, apart from the others; it shares the old one's files.
    """
    folder = fragment.path.parent
    target = folder.parent / REST / folder.name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / "files").symlink_to(Path("..", "..", folder.name, "files"))
    kept = list[bytes]()
    for payload in _payloads(fragment.path):
        record = _records().Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        sent -= kind == "history"
        if kind == "artifact":
            for entry in record.artifact.manifest.contents:
                if entry.local_path and not _is_staged(fragment, entry.local_path):
                    entry.local_path = str(present(fragment, entry.local_path))
            payload = record.SerializeToString()
        if kind != "stats" and (kind != "history" or sent < 0):
            kept.append(payload)
    head = fragment.path.read_bytes()[:FILE_HEAD]
    (target / fragment.path.name).write_bytes(written(kept, head))
    return target


def mend(fragment: Fragment) -> None:
    """Cut off a record that a kill tore, or set a log with none aside, for `wandb sync`'s sake.

    A log that a process of this machine has open is left as it is.
    """
    if fragment.settled or being_written([fragment.path]):
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


def doubt(fragment: Fragment) -> None:
    """Note that W&B's mark is not to be trusted, which it sets even if the server refused rows."""
    _beside(fragment.path, "unverified").touch()


def trust(fragment: Fragment) -> None:
    """Note that the server was asked, and has all of it or does not tell."""
    _beside(fragment.path, "unverified").unlink(missing_ok=True)


def mark_uploaded(path: Path) -> None:
    """Note that the server took all of an online run's log."""
    _beside(path, "uploaded").touch()


def being_written(paths: list[Path]) -> set[Path]:
    """Tell which files a process of ours on this machine has open; unknown means none."""
    wanted = {str(path.resolve()): path for path in paths}
    found = set[Path]()
    for handles in Path("/proc").glob("[0-9]*/fd"):
        with suppress(OSError):  # another user's, or it has just ended
            for handle in handles.iterdir():
                with suppress(FileNotFoundError):  # closed since
                    found |= {wanted[name] for name in [str(handle.readlink())] if name in wanted}
    return found


def _starting_step(path: Path) -> int | None:
    """Read what W&B notes as soon as it starts to upload a log."""
    with suppress(OSError, ValueError, KeyError):
        return int(json.loads(_beside(path, "syncstate").read_text())["starting_step"])
    return None


def _records() -> Any:
    return importlib.import_module("wandb.proto.wandb_internal_pb2")


def _beside(path: Path, end: str) -> Path:
    return path.with_name(f"{path.name}.{end}")


def _tokens(record: Any) -> int:
    for item in record.history.item:
        if _name(item) == "tokens_seen":
            return int(item.value_json)
    return 0


def _name(item: Any) -> str:
    return ".".join(item.nested_key) or item.key
