"""Sees what this process does while a block runs: commands, imports, files of some folder."""

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

COMMANDS = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen")
"""Python's own words for starting something."""


@dataclass
class Watch:
    """What is looked for, and what was seen of it."""

    outside: Path
    """No file in it may be opened or listed."""
    modules: tuple[str, ...]
    """None of them may be imported."""
    seen: list[str] = field(default_factory=list[str])

    def take(self, event: str, args: tuple[Any, ...]) -> None:
        """Note an event that is looked for."""
        if event in COMMANDS and args[0] != "git":  # which tells the commit of the code
            self.seen.append(f"{event} {args[:2]}")
        elif event == "import" and args[0].partition(".")[0] in self.modules:
            self.seen.append(f"import {args[0]}")
        elif event in ("open", "os.listdir", "os.scandir") and isinstance(args[0], str | bytes):
            path = args[0] if isinstance(args[0], str) else args[0].decode(errors="replace")
            if "\0" not in path and Path(path).resolve().is_relative_to(self.outside):
                self.seen.append(f"{event} {path}")


_watches: list[Watch] = []


@cache
def _listen() -> None:
    """Have Python tell of everything; such a hook stays for good."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if _watches and event in (*COMMANDS, "import", "open", "os.listdir", "os.scandir"):
            watch = _watches.pop()  # what it does itself is not looked at
            try:
                watch.take(event, args)
            finally:
                _watches.append(watch)

    sys.addaudithook(hook)


@contextmanager
def watched(outside: Path, *modules: str) -> Generator[list[str]]:
    """Give a list that fills with what happens: commands, these imports, files of `outside`."""
    _listen()
    watch = Watch(outside.resolve(), modules)
    _watches.append(watch)
    try:
        yield watch.seen
    finally:
        _watches.remove(watch)
