"""Collect the text that every CPython installation carries and split it by document."""

import hashlib
import importlib
import sys
import sysconfig
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Literal

Kind = Literal["code", "prose"]
Split = Literal["train", "held_out"]

EXCLUDED_FILES = frozenset({"urllib/robotparser.py"})
"""Its header offers the GPL as an alternative licence."""

SKIPPED_PARTS = frozenset(
    [
        "site-packages",
        "dist-packages",
        "__pycache__",
        "ensurepip",
        "lib-dynload",
        "test",
        "tests",
        "idle_test",
        "encodings",
        "pydoc_data",
        "lib2to3",
        "idlelib",
        "turtledemo",
    ]
)
"""Folders of tests, tables, third-party wheels and applications."""

C_MODULES = frozenset(sys.builtin_module_names) | frozenset(
    [
        "math",
        "_datetime",
        "_decimal",
        "array",
        "_struct",
        "select",
        "_socket",
        "_ssl",
        "_sqlite3",
        "pyexpat",
        "unicodedata",
        "_json",
        "_pickle",
        "_elementtree",
        "zlib",
        "mmap",
        "_ctypes",
    ]
)
"""Modules written in C, whose text is their docstrings."""

C_CALLABLES = (
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.GetSetDescriptorType,
    types.WrapperDescriptorType,
)

MIN_CHARACTERS = 200
MIN_DOCSTRING_CHARACTERS = 40
MAX_DEPTH = 3
HELD_OUT_PERCENT = 5
MIN_SECTION_SHARE = 0.9
"""Links and heading underlines differ between a section and the topic around it."""

LONG_LINE_CHARACTERS = 30
"""Shorter lines (`return self`) repeat everywhere and tell nothing about copied text."""


@dataclass(frozen=True)
class Document:
    """One text with the name it is listed under in the provenance."""

    name: str
    kind: Kind
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def split(self) -> Split:
        """The side the name's hash assigns, stable when a later CPython edits the text."""
        percent = int(hashlib.sha256(self.name.encode()).hexdigest()[:8], 16) % 100
        return "held_out" if percent < HELD_OUT_PERCENT else "train"


def long_lines(text: str) -> set[str]:
    """Return the lines of `text` that are long enough to identify it."""
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if len(line) >= LONG_LINE_CHARACTERS}


def is_section(name: str, lines: dict[str, set[str]]) -> bool:
    """Tell whether a larger topic (by name, if equal) holds nearly all lines of this one."""
    own = lines[name]
    larger = (other for other in lines if (len(lines[other]), other) > (len(own), name))
    return any(len(own & lines[other]) >= MIN_SECTION_SHARE * len(own) for other in larger)


def collect_topics() -> Iterator[Document]:
    """Yield the language reference that `help()` shows, without sections of larger topics.

    The topic `while` is a section of the topic `compound`: kept, it could be held out of a
    training split that contains it.
    """
    lines = {name: long_lines(text) for name, text in topics.topics.items()}
    for name, text in sorted(topics.topics.items()):
        if not is_section(name, lines):
            yield Document(f"topics/{name}", "prose", text)


def is_wanted(relative: Path) -> bool:
    """Tell whether a file of the standard library belongs to the corpus."""
    skipped = any(part in SKIPPED_PARTS or part.startswith("config-") for part in relative.parts)
    # The interpreter's build writes its own paths into _sysconfigdata.
    generated = relative.name.startswith("_sysconfigdata")
    return not (skipped or generated or relative.as_posix() in EXCLUDED_FILES)


def collect_sources(library: Path) -> Iterator[Document]:
    """Yield the Python source files under `library`."""
    for path in sorted(library.rglob("*.py")):
        relative = path.relative_to(library)
        if is_wanted(relative):
            yield Document(f"lib/{relative.as_posix()}", "code", path.read_text("utf-8"))


def walk_docstrings(owner: object, seen: set[int], depth: int = 0) -> Iterator[str]:
    """Yield the docstrings of `owner` and of what it contains, each class once."""
    # Only modules and classes outlive the walk, so only their ids are comparable.
    if isinstance(owner, type | types.ModuleType):
        if id(owner) in seen:
            return
        seen.add(id(owner))
    doc = getattr(owner, "__doc__", None)
    if isinstance(doc, str) and len(doc) > MIN_DOCSTRING_CHARACTERS:
        yield doc
    if depth == MAX_DEPTH or isinstance(owner, C_CALLABLES):
        return
    for name in sorted(dir(owner)):
        member = getattr(owner, name, None)
        if isinstance(member, (type, *C_CALLABLES)):
            yield from walk_docstrings(member, seen, depth + 1)


def collect_c_docstrings() -> Iterator[Document]:
    """Yield one document per C module: its docstrings, none repeated across modules."""
    seen_ids: set[int] = set()
    seen_docs: set[str] = set()
    for name in sorted(C_MODULES):
        found = dict.fromkeys(walk_docstrings(importlib.import_module(name), seen_ids))
        fresh = [doc for doc in found if doc not in seen_docs]
        seen_docs.update(fresh)
        yield Document(f"cdoc/{name}", "prose", "\n\n".join(fresh))


def shared_line_frac(documents: list[Document]) -> float:
    """Return the fraction of long held-out lines that the train split contains."""
    lines: dict[Split, set[str]] = {"train": set(), "held_out": set()}
    for document in documents:
        lines[document.split] |= long_lines(document.text)
    return len(lines["train"] & lines["held_out"]) / len(lines["held_out"])


def collect() -> list[Document]:
    """Return every distinct document, ordered by hash so that any prefix mixes the kinds."""
    library = Path(sysconfig.get_path("stdlib"))
    by_hash: dict[str, Document] = {}
    for source in (collect_topics(), collect_sources(library), collect_c_docstrings()):
        for document in source:
            if len(document.text) >= MIN_CHARACTERS:
                by_hash.setdefault(document.sha256, document)
    return [by_hash[digest] for digest in sorted(by_hash)]
