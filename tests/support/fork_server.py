"""Forks of one process that has loaded everything: a command starts 0.1 s after it is asked for.

Nothing of a command stays: every fork is a session of its own with an environment and limits of its
own, and ends for good.
"""

import atexit
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.places import ROOT

MEMORY_BYTES = 4 * 2**30
FILE_BYTES = 2**28
SECONDS = 20
"""What a limited command may have: giant options may fail, never bring the machine down."""


@dataclass(frozen=True)
class Command:
    """What a fork is asked to be."""

    words: tuple[str, ...]
    cwd: str
    out: str
    """The file that stdout goes to."""
    err: str
    environment: dict[str, str] = field(default_factory=dict[str, str])
    main: str = "sae_sweeps.__main__"
    """The module whose `main` it calls."""
    ignored: tuple[int, ...] = ()
    """Signals that it starts with ignored, as after `nohup`."""
    broken: bool = False
    """Nobody reads what it writes to stdout and stderr."""
    limited: bool = False
    """Memory, files and time are limited."""
    patches: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Values for `module:name`, such as limits of time."""
    before: str = ""
    """Code that is executed before `main`."""


class ForkServer:
    """The process that forks, seen from a test."""

    def __init__(self, checkout: Path = ROOT) -> None:
        """Have it load the package and the option files of a folder such as the repository."""
        self.modules = f"{checkout}{os.pathsep}{ROOT}"
        """Where a command's own processes find the same package, and the tests."""
        own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "WANDB_ERROR_REPORTING": "false"}
        own["PYTHONPATH"] = self.modules
        self.asking = threading.Lock()
        """Held by a thread of the test until it has its answer."""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_server"],
            cwd=checkout,
            env=environment() | own,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, command: Command) -> int:
        """Have it fork; gives the child's process id."""
        return self._ask(asdict(command))

    def ended(self, pid: int, wait: bool = False) -> int | None:
        """Give a child's exit code, less the signal's number if one ended it; None: it lives."""
        return self._ask({"pid": pid, "flags": 0 if wait else os.WNOHANG})

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self.process.stdin and self.process.stdout
        with self.asking:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


def environment() -> dict[str, str]:
    """This process's environment, less what is of a developer's W&B or a SLURM job."""
    names = [name for name in os.environ if not name.startswith(("WANDB", "SLURM"))]
    return {name: os.environ[name] for name in names} | {"PYTHONPATH": str(ROOT)}


# --- Inside the process --------------------------------------------------------------------


def serve() -> None:
    """Fork, or say how a fork ended, once per line on stdin."""
    answers = os.fdopen(os.dup(1), "w")
    load()
    gc.freeze()  # so that forks copy less
    for line in sys.stdin:
        question = json.loads(line)
        if "pid" in question:
            pid, status = os.waitpid(question["pid"], question["flags"])
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                answers.close()
                os._exit(become(Command(**question)))
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


def load() -> None:
    """Import what commands import.

    No thread may start here, since a fork would lose it; but for one of pyarrow's allocator, which
    knows of forks.
    """
    import importlib
    import pkgutil

    from hydra._internal.config_repository import ConfigRepository

    import sae_sweeps
    from tests.support import option_files

    [package] = sae_sweeps.__path__
    for module in pkgutil.walk_packages([package], "sae_sweeps."):
        if not module.name.startswith("sae_sweeps.embedded.") and "__main__" not in module.name:
            importlib.import_module(module.name)
    # What they import later: with the first optimiser, model, job, tracked run and display.
    late = ("torch._dynamo", "transformer_lens.model_bridge", "transformers.models.gpt2")
    for name in (*late, "submitit.core.core", "wandb", "rich.progress"):
        importlib.import_module(name)
    ConfigRepository.load_config = option_files.load_config
    option_files.load_all(Path(package).parent / "conf")


def become(command: Command) -> int:
    """Be the command: returns the exit code once all is written."""
    import importlib
    import traceback

    os.setsid()
    os.environ.clear()
    os.environ.update(command.environment)
    os.chdir(command.cwd)
    for handle, name in enumerate((os.devnull, command.out, command.err)):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT), handle)
    limit(command)
    for place, value in command.patches.items():
        module, _, attribute = place.partition(":")
        setattr(importlib.import_module(module), attribute, value)
    sys.argv = ["sae-sweeps", *command.words]
    sys.orig_argv = [sys.executable, *sys.argv]

    code: Any = 0
    try:
        exec(command.before, {})
        code = importlib.import_module(command.main).main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # What Python does at its end, but for taking everything apart.
    threading._shutdown()  # pyright: ignore
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else 1 if code else 0


def limit(command: Command) -> None:
    """Bind the process as the command asks for."""
    if command.broken:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
    # Whoever runs the tests in the background may have these ignored.
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        ignored = signum in command.ignored
        default = signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL
        signal.signal(signum, signal.SIG_IGN if ignored else default)
    if command.limited:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        memory = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        signal.alarm(SECONDS)


if __name__ == "__main__":
    serve()
