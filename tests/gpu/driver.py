"""What a GPU machine without a network is asked: rates, steps, peers, a sweep, bits, quality.

Installs the wheels that tests/gpu/pack laid into tests/gpu/wheels into a folder that is gone
afterwards, and runs part after part, each a process with a time limit. A part that fails is written
down, and the next one goes on. After each part FOLDER/gpu.json is written anew; last comes a table
of one page, which is FOLDER/gpu.txt as well.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.support.places import ROOT, TESTS

from .agenda import KERNELS, PARTS, TOTAL_S, Part
from .checkout import checkout
from .installed import Lacking, installed, packed
from .process import run, skipped
from .report import figures_in, table
from .wheels import WHEELS

RESULTS = TESTS / "benchmarks" / "results" / "gpu"
NAME = "gpu"
"""Of the two files."""
PATIENCE = 5
"""How many times as long a rehearsal may take: its machine may have other work."""


class Run:
    """One run, or a rehearsal, and what it has found so far."""

    def __init__(self, parts: Sequence[Part], out: Path, wheels: Path, rehearsal: bool) -> None:
        self.parts, self.out, self.wheels = parts, out, wheels
        self.began = time.monotonic()
        self.document: dict[str, Any] = {
            "version": 1,
            "rehearsal": rehearsal,
            "started": datetime.now().astimezone().isoformat(timespec="seconds"),
            "kernels": KERNELS,
            "code": {**checkout(), "packed": packed(wheels)},
            "total_limit_s": TOTAL_S,
            "parts": [],
        }
        self._write()

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    def all(self) -> None:
        """Do one part after the other, as long as there is time.

        Raises:
            Lacking: there are no wheels, or they cannot be installed.
        """
        with tempfile.TemporaryDirectory(prefix="gpu-run") as home:
            folders = installed(self.wheels, Path(home))
            for part in self.parts:
                self.document["parts"].append(self._done(part, folders, Path(home)))
                self._write()
                self._tell()

    def _done(self, part: Part, folders: Mapping[str, Path], home: Path) -> dict[str, Any]:
        rehearsal = self.document["rehearsal"]
        times = PATIENCE if rehearsal else 1
        limit_s = min(times * part.limit_s, times * TOTAL_S - self.seconds)
        if limit_s <= 0:
            return skipped(part.name, part.limit_s)
        paths = [folders["peers" if part.peers else "ours"], ROOT]
        return run(part.name, part.command(rehearsal), limit_s, environment(paths, home), home)

    def _tell(self) -> None:
        last = self.document["parts"][-1]
        sys.stderr.write(f"{last['name']}: {last['state']}, {last['seconds']:.1f} s\n")

    def _write(self) -> None:
        """Write both files anew; whoever reads meanwhile finds the last ones whole."""
        self.document["seconds"] = round(self.seconds, 1)
        figures, rehearsal = figures_in(self.document), self.document["rehearsal"]
        self.document["goals"] = [
            {"part": part.name, **goal.judged(figures, rehearsal)}
            for part in self.parts
            for goal in part.goals
        ]
        self.out.mkdir(parents=True, exist_ok=True)
        text = as_json(self.document)
        for suffix, content in (("json", text), ("txt", table(self.document, self.parts))):
            new = self.out / f".{NAME}.{suffix}.new"
            new.write_text(content, encoding="utf-8")
            new.replace(self.out / f"{NAME}.{suffix}")


def as_json(document: Mapping[str, Any]) -> str:
    """A document as strict JSON: what is no number stands as null."""
    return json.dumps(finite(document), indent=1, ensure_ascii=False) + "\n"


def finite(value: Any) -> Any:
    """The value, with None for each number that JSON has not."""
    if isinstance(value, Mapping):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value


def environment(paths: Iterable[Path], home: Path) -> dict[str, str]:
    """What a part's process is started with."""
    # Without bytecode each part would compile anew what it imports.
    kept = {name: each for name, each in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "TMPDIR": str(home),  # what a part that was killed leaves there goes with it
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",  # nothing is to be looked for in a network
    }


def chosen(names: str | None) -> list[Part]:
    """The parts of these names, in their usual order; all where none are given."""
    wanted = [part.name for part in PARTS] if names is None else names.split(",")
    unknown = set(wanted) - {part.name for part in PARTS}
    if unknown:
        known = ", ".join(part.name for part in PARTS)
        raise Lacking(f"no such part: {', '.join(sorted(unknown))}; there are {known}.")
    return [part for part in PARTS if part.name in wanted]


def arguments(words: Sequence[str]) -> argparse.Namespace:
    """What the command's words say."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run", description=__doc__)
    text = "at toy sizes, on a CPU: to see that nothing is misspelt; figures mean nothing"
    parser.add_argument("--rehearse", action="store_true", help=text)
    text = f"where the two files go; else the variable OUT says it, or it is {RESULTS}, "
    text += "and for a rehearsal a new folder"
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=text)
    names = ", ".join(part.name for part in PARTS)
    parser.add_argument("--only", metavar="PART,...", help=f"some parts alone, of {names}")
    text = f"what tests/gpu/pack gathered; else {WHEELS}"
    parser.add_argument("--wheels", type=Path, default=WHEELS, metavar="FOLDER", help=text)
    return parser.parse_args(words)


def place(given: Path | None, rehearsal: bool) -> Path:
    """Where the two files go."""
    if given is not None:
        return given
    if "OUT" in os.environ:
        return Path(os.environ["OUT"])
    return Path(tempfile.mkdtemp(prefix="gpu-rehearsal")) if rehearsal else RESULTS


def leave(signum: int, frame: object) -> None:
    """End, and with it the part that runs."""
    del frame
    sys.exit(128 + signum)


def main(words: Sequence[str] | None = None) -> None:
    """`run [--rehearse] [--out FOLDER] [--only PART,...]`"""
    given = arguments(sys.argv[1:] if words is None else words)
    signal.signal(signal.SIGTERM, leave)
    try:
        out = place(given.out, given.rehearse)
        done = Run(chosen(given.only), out, given.wheels, given.rehearse)
        done.all()
    except Lacking as error:
        sys.exit(f"tests/gpu/run: {error}")
    sys.stdout.write((out / f"{NAME}.txt").read_text(encoding="utf-8"))
    sys.stdout.write(f"\n{out / NAME}.json\n")


if __name__ == "__main__":
    main()
