"""Runs `sae-sweeps` command lines in forks of one process that has loaded everything: 0.2 s each.

Nothing of a command stays: every fork has its own folder, limits of its own, and ends for good.
"""

import gc
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent.parent

MEMORY_BYTES = 4 * 2**30
FILE_BYTES = 2**28
SECONDS = 60


@dataclass(frozen=True)
class Ended:
    """How a command ended and what it left."""

    words: tuple[str, ...]
    code: int
    """The exit code; less the signal's number if one ended it."""
    out: str
    err: str
    files: tuple[str, ...]
    """What lies in the folder that it ran in."""


class ForkServer:
    """The process that forks, seen from a test."""

    def __init__(self, scratch: Path) -> None:
        self.scratch, self.count = scratch, 0
        environment = {
            **{"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(scratch)},
            **{"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"},
        }
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            cwd=scratch,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> Ended:
        """Run `sae-sweeps WORDS` in an empty folder."""
        home = self.scratch / str(self.count)
        self.count += 1
        (home / "empty").mkdir(parents=True)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps([str(home), list(words)]) + "\n")
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        files = sorted(str(path.relative_to(home)) for path in home.rglob("*"))
        out, err = (_read(home / name) for name in ("out", "err"))
        left = [name for name in files if name not in ("empty", "out", "err")]
        return Ended(words, code, out, err, tuple(left))

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


# --- Inside the process --------------------------------------------------------------------


def serve() -> None:
    """Fork once per line on stdin, and answer with the exit code."""
    answers = os.fdopen(os.dup(1), "w")
    sys.path[0] = str(ROOT)
    load()
    gc.freeze()  # so that forks copy less
    for line in sys.stdin:
        home, words = json.loads(line)
        child = os.fork()
        if child == 0:
            os._exit(command(Path(home), words, answers))
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


def load() -> None:
    """Import what commands import; no thread may start here, since a fork would lose it."""
    import importlib
    import pkgutil

    import sae_sweeps

    for module in pkgutil.walk_packages(sae_sweeps.__path__, "sae_sweeps."):
        if not module.name.startswith("sae_sweeps.embedded.") and "__main__" not in module.name:
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # which torch loads with the first optimiser


def command(home: Path, words: Sequence[str], answers: IO[str]) -> int:
    """Be the command: returns the exit code once all is written."""
    answers.close()
    os.chdir(home / "empty")
    for number, name in enumerate(("/dev/null", "../out", "../err")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), number)
    limit()
    sys.argv = ["sae-sweeps", *words]
    sys.orig_argv = [sys.executable, *sys.argv]
    from sae_sweeps.__main__ import main

    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1 if code else 0


def limit() -> None:
    """Take care of the machine: giant options may fail, never bring it down."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    memory = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    signal.alarm(SECONDS)


if __name__ == "__main__":
    serve()
