"""Reads W&B's offline runs back, for tests: a LevelDB log of protobuf records (wandb 0.31)."""

import importlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

BLOCK, FILE_HEAD, RECORD_HEAD = 32768, 7, 7
FULL, LAST = 1, 4


@dataclass
class OfflineRun:
    """What one `offline-run-*` folder holds."""

    folder: Path
    fields: dict[str, Any] = field(default_factory=dict[str, Any])
    config: dict[str, Any] = field(default_factory=dict[str, Any])
    summary: dict[str, Any] = field(default_factory=dict[str, Any])
    rows: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    step_metrics: dict[str, str] = field(default_factory=dict[str, str])
    exit_code: int | None = None

    def table(self, key: str) -> dict[str, Any]:
        """Load a logged table: its `columns` and `data`."""
        return json.loads((self.folder / "files" / self.summary[key]["path"]).read_text())


class _Item(Protocol):
    key: str
    nested_key: Sequence[str]
    value_json: str


def read(folder: Path) -> OfflineRun:
    """Read one run; its process must have ended or called `wandb.teardown()`."""
    records: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    run = OfflineRun(folder)
    (log,) = folder.glob("run-*.wandb")
    for payload in _payloads(log.read_bytes()):
        record = records.Record.FromString(payload)
        _take(run, record.WhichOneof("record_type"), record)
    return run


def read_all(wandb_folder: Path) -> dict[str, OfflineRun]:
    """Read every offline run of a `wandb/` folder, by the run's shown name."""
    runs = [read(folder) for folder in sorted(wandb_folder.glob("offline-run-*"))]
    return {run.fields["name"]: run for run in runs}


def _take(run: OfflineRun, kind: str | None, record: Any) -> None:
    if kind == "run":
        _put_all(run.config, record.run.config.update)
        names = {"run_id": "id", "run_group": "group", "display_name": "name"}
        for name in ("entity", "project", "run_id", "run_group", "job_type", "display_name"):
            run.fields[names.get(name, name)] = getattr(record.run, name)
        run.fields["tags"] = list(record.run.tags)
    elif kind == "config":
        _put_all(run.config, record.config.update)
    elif kind == "history":
        run.rows.append({})
        _put_all(run.rows[-1], record.history.item)
    elif kind == "summary":
        _put_all(run.summary, record.summary.update)
    elif kind == "metric":
        name = record.metric.name or record.metric.glob_name
        run.step_metrics[name] = record.metric.step_metric
    elif kind == "exit":
        run.exit_code = record.exit.exit_code


def _put_all(node: dict[str, Any], items: Sequence[_Item]) -> None:
    for item in items:
        *above, last = list(item.nested_key) or [item.key]
        inner = node
        for key in above:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def _payloads(content: bytes) -> Iterator[bytes]:
    """Give the records of a log; one that was torn at the end is left out."""
    assert content[:4] == b":W&B", "not a W&B log"
    position, parts = FILE_HEAD, list[bytes]()
    while position + RECORD_HEAD <= len(content):
        left = BLOCK - position % BLOCK
        _, size, kind = struct.unpack_from("<IHB", content, position)
        if left < RECORD_HEAD or (kind == 0 and size == 0):  # padding at the end of a block
            position += left
            continue
        end = position + RECORD_HEAD + size
        if end > len(content):
            return
        parts.append(content[position + RECORD_HEAD : end])
        position = end
        if kind in (FULL, LAST):
            yield b"".join(parts)
            parts = []
