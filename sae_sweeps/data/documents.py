"""Documents from files and from data sets, in a fixed order, read by `datasets`; no torch."""

import glob
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from sae_sweeps.errors import ConfigError, did_you_mean, one_line
from sae_sweeps.system import hugging_face

READERS = {
    ".txt": "text",
    ".md": "text",
    ".jsonl": "json",
    ".json": "json",
    ".parquet": "parquet",
    ".csv": "csv",
}
"""What reads a file, by its suffix."""
SUFFIXES = f"{', '.join(list(READERS)[:-1])} or {list(READERS)[-1]}"
ROWS_READ = 256
"""Rows of a table that are read at once."""


def text_files(path: str) -> list[Path]:
    """Give the files with text that a file's or folder's path or a pattern names, sorted.

    A folder's subfolders count; hidden files and folders in it do not.

    Raises:
        ConfigError: there are none.
    """
    what = f"data.path is {path!r}: "
    try:
        place = Path(path).expanduser()
        if place.is_file():
            if place.suffix not in READERS:
                raise ConfigError(f"data.path is {path!r}, expected {SUFFIXES}.")
            return [place.absolute()]
        whole = place.absolute()
        pattern = str(whole.relative_to(whole.anchor))
        found = place.rglob("*") if place.is_dir() else Path(whole.anchor).glob(pattern)
        shown = [file.absolute() for file in sorted(found) if not _is_hidden(file, whole)]
        files = [file for file in shown if file.suffix in READERS and file.is_file()]
    except (OSError, RuntimeError, ValueError) as error:  # too long, or the home of nobody
        raise ConfigError(f"{what}it cannot be looked for ({one_line(error)}).") from error
    if not files:
        exists = shown or place.is_dir()
        fault = f"it holds no {SUFFIXES} files." if exists else "there is no such file or folder."
        raise ConfigError(what + fault)
    return files


def _is_hidden(file: Path, given: Path) -> bool:
    return any(part.startswith(".") and part not in given.parts for part in file.parts)


def fingerprint(files: Iterable[Path]) -> list[list[str | int]]:
    """Tell files apart from what they were or others, by path, size and time of change."""
    stats = ((str(file), file.stat()) for file in files)
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def of_files(path: str, column: str, sample_by: str) -> Iterator[str]:
    """Give the documents of text files: their parts, or a column's values.

    Raises:
        ConfigError: a file cannot be read, or has no such column of text.
    """
    where = f"data.path is {path!r}: "
    for reader, files in groupby(text_files(path), key=lambda file: READERS[file.suffix]):
        names = [glob.escape(str(file)) for file in files]
        text = {"sample_by": sample_by} if reader == "text" else {}
        name = "text" if reader == "text" else column

        def load(reader: str = reader, names: list[str] = names, text: Any = text) -> Any:
            return _datasets().load_dataset(
                reader, data_files=names, split="train", streaming=True, **text
            )

        yield from _column(load, name, lambda error: where + _reason(error))


def text_source(path: str, column: str, sample_by: str) -> dict[str, Any]:
    """Name what the documents under a path are a function of; raises ConfigError."""
    files = fingerprint(text_files(path))
    return {"files": files, "column": column, "sample_by": sample_by}


def hub_source(node: dict[str, Any]) -> dict[str, Any]:
    """Name what a data set's documents are a function of, from its options."""
    names = ("dataset", "config", "split", "column", "revision")
    source = {name: node[name] for name in names}
    folder = Path(node["dataset"]).expanduser()
    if folder.is_dir():
        source["files"] = fingerprint(file for file in sorted(folder.rglob("*")) if file.is_file())
    return source


def of_data_set(node: dict[str, Any]) -> Iterator[str]:
    """Give the documents of a data set of the Hugging Face Hub, or of a folder that is like one.

    Raises:
        ConfigError: it cannot be had, or has no such split, or no such column of text.
    """

    repository = hugging_face.Repository("data.dataset", node["dataset"], node["revision"])
    place = Path(node["dataset"]).expanduser()
    of_hub = hugging_face.is_name(node["dataset"]) and not place.is_dir()

    def load() -> Any:
        if of_hub:
            hugging_face.settle()
        return _datasets().load_dataset(
            str(place),
            node["config"],
            split=node["split"],
            revision=node["revision"],
            streaming=node["streaming"],
        )

    def fault(error: Exception) -> str:
        # `datasets` leaves out what the hub had said, so that it is asked again.
        refused = of_hub and (hugging_face.worded(error, repository) or _asked(repository))
        return refused or repository.what + _reason(error)

    return _column(load, node["column"], fault)


def _asked(repository: hugging_face.Repository) -> str:
    return "" if hugging_face.silence() else hugging_face.refusal(repository)


def _datasets() -> Any:
    """The library, without bars of its own; imported here, since that takes seconds."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _column(
    load: Callable[[], Any], column: str, fault: Callable[[Exception], str]
) -> Iterator[str]:
    """Give a column's values, empty ones as ''; whatever a reader raises becomes one line."""
    try:
        rows = load()
        if rows.column_names:  # known before anything is read, so that only one is
            _check_column(column, rows.column_names)
            rows = rows.select_columns([column])
        for batch in rows.iter(ROWS_READ):
            _check_column(column, batch)
            yield from (_text(value, column) for value in batch[column])
    except ConfigError:
        raise
    except StopIteration:
        return  # what `datasets` answers to a JSON file without a line
    except Exception as error:  # of pyarrow, of the hub, of a network, of a damaged file
        raise ConfigError(fault(error)) from error


def _check_column(column: str, known: Collection[str]) -> None:
    if column not in known:
        names = ", ".join(map(repr, known))
        guess = did_you_mean(column, known)
        raise ConfigError(f"data.column is {column!r}, expected one of {names}.{guess}")


def _text(value: object, column: str) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    raise ConfigError(f"data.column is {column!r}: it holds {type(value).__name__}, not text.")


def _reason(error: BaseException) -> str:
    return f"it cannot be read ({one_line(error)[:200] or type(error).__name__})."
