"""Trainings of `quality` as processes, and their rows, kept at once: an interrupted one goes on."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from tests.benchmarks.engine_rounds import ENVIRONMENT, last_words
from tests.benchmarks.quality_cases import OURS, Case
from tests.support.places import ROOT

PEERS = Path(__file__).parent / "quality_peers.py"
LIMIT_S = 3600.0
Row = dict[str, Any]
"""`l0`, `fvu`, `dead_frac`, `cpu_s`; or `error`, with what was wrong"""
Train = Callable[[Case], Row]


def say(text: str) -> None:
    """Tell whoever waits at the terminal."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class Missing(Exception):
    """A row that is not there yet."""


class Rows:
    """A JSON file of rows by their case's key, one to a line; written anew with every row."""

    def __init__(self, path: Path, behind: "Rows | None" = None) -> None:
        """Open the file; what it lacks may be in `behind`, which is never written."""
        self.path, self.behind, self.lock = path, behind, Lock()
        self.found: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}

    def row(self, case: Case) -> Row:
        """A case's row; raises Missing."""
        if case.key in self.found:
            return self.found[case.key]
        if self.behind is None:
            raise Missing(case.key)
        return self.behind.row(case)

    def put(self, case: Case, row: Row) -> None:
        """Keep a row."""
        with self.lock:
            self.found[case.key] = row
            self._write()

    def forget(self, unwanted: Callable[[str], bool]) -> None:
        """Leave out the rows of some keys."""
        with self.lock:
            self.found = {key: row for key, row in self.found.items() if not unwanted(key)}
            self._write()

    def _write(self) -> None:
        lines = [f"{json.dumps(key)}: {json.dumps(self.found[key])}" for key in sorted(self.found)]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".part")
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        temporary.replace(self.path)


@dataclass
class Bench:
    """Trains what rows lack."""

    rows: Rows
    home: Path
    python: Path
    """an interpreter with the peers"""
    places: Mapping[str, Mapping[str, Any]]
    """by set, what a peer is told of it"""
    tell: Callable[[str], object] = say

    def train(self, case: Case) -> Row:
        """A case's row, trained for if need be."""
        try:
            return self.rows.row(case)
        except Missing:
            row = self._trained(case)
        figures = [f"{name} {value:.4g}" for name, value in row.items() if name != "error"]
        self.tell(f"{case.key}: {row.get('error', ', '.join(figures))}")
        self.rows.put(case, row)
        return row

    def _trained(self, case: Case) -> Row:
        with tempfile.TemporaryDirectory() as folder:
            answer, log = Path(folder, "answer.json"), Path(folder, "log.txt")
            with log.open("w") as words:
                ended = subprocess.run(
                    [*self._command(case), str(answer)],
                    cwd=ROOT,
                    env=os.environ | ENVIRONMENT | {"TQDM_DISABLE": "1"},
                    stdout=words,
                    stderr=words,
                    timeout=LIMIT_S,
                    check=False,
                )
            if ended.returncode == 0:
                return json.loads(answer.read_text())
            if ended.returncode < 0:  # killed, which says nothing of the case
                raise KeyboardInterrupt(f"{case.key}: signal {-ended.returncode}")
            return {"error": last_words(log)}

    def _command(self, case: Case) -> list[str]:
        given = case.as_json() | {"home": str(self.home)} | dict(self.places[case.set])
        if case.contender == OURS:
            return [sys.executable, "-m", "tests.benchmarks.quality_ours", json.dumps(given)]
        return [str(self.python), str(PEERS), json.dumps(given)]
