"""Processes on this machine that train frozen packs, one per device at a time."""

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

from sae_sweeps.launching.monitor import watch
from sae_sweeps.record import manifest
from sae_sweeps.record.folder import PackFiles
from sae_sweeps.system import interrupt

if TYPE_CHECKING:
    from sae_sweeps.launching.progress import Display

LOOK_EVERY_S = 1.0
FAILED = 2
"""The exit code of a process some of whose runs failed."""


def devices(name: str, workers: int | None) -> list[str | None]:
    """Give each worker the CUDA device that it sees; None leaves it all there is.

    As many workers as asked for, else one per CUDA device where `name` is `auto` or `cuda`.
    """
    import torch

    count = torch.cuda.device_count() if name in ("auto", "cuda") else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = visible.split(",")[:count] if visible else [str(index) for index in range(count)]
    total = workers or max(1, count)
    return [seen[worker % count] if count else None for worker in range(total)]


def free_bytes(devices: Sequence[str | None]) -> int | None:
    """Memory that is free on CUDA devices for each worker; None where that cannot be told.

    It is asked of NVIDIA's tool: to ask CUDA itself would take half a GB of each. Of a part of a
    device it tells none.
    """
    ids = [device for device in devices if device is not None]
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    if not ids or shutil.which(command[0]) is None:
        return None
    try:
        told = subprocess.run([*command, "-i", ",".join(ids)], capture_output=True, timeout=60)
        return 2**20 * min(map(int, told.stdout.split())) // max(Counter(ids).values())
    except (subprocess.TimeoutExpired, ValueError, OSError):
        return None


def work_apart(
    folder: Path,
    packs: Sequence[Path],
    names: Sequence[str],
    given: Sequence[str | None],
    display: "Display",
) -> dict[str, str]:
    """Have one process per device work off the packs, whose runs are `names`.

    What became of the runs is in their files. Returned is how processes ended that did not get
    through their pack, by the pack's name.

    On a signal all of them are told to stop, and save what they have, before it goes on.
    """
    workers = _Workers(given)
    futures: list[Future[None]] = []
    with ThreadPoolExecutor(len(given)) as pool:
        try:
            futures += [pool.submit(workers.run, path) for path in packs]
            watch(folder, display, names, LOOK_EVERY_S, stop=lambda: all(map(Future.done, futures)))
        except interrupt.Interrupted:
            with interrupt.deferred():
                workers.stop(signal.SIGTERM)
                wait(futures)
            raise
        except BaseException:  # a second Ctrl-C among others; the pool would wait for them
            workers.stop(signal.SIGKILL)
            raise
    return workers.ends


class _Workers:
    """Hands packs to devices as these come free."""

    def __init__(self, given: Sequence[str | None]) -> None:
        self.free: SimpleQueue[tuple[int, str | None]] = SimpleQueue()
        for place in enumerate(given):
            self.free.put(place)
        self.count = len(given)
        self.running: set[subprocess.Popen[bytes]] = set()
        self.ends: dict[str, str] = {}
        self.stopped = False
        self.lock = Lock()

    def run(self, pack: Path) -> None:
        """Train a pack in a process of its own, once a device is free."""
        index, device = self.free.get()
        try:
            process = self._start(pack, index, device)
            if process is not None:
                self._note(pack, process.wait())
                with self.lock:
                    self.running.discard(process)
        except OSError as error:
            self.ends[pack.stem] = f"its process could not be started: {error.strerror}"
        finally:
            self.free.put((index, device))

    def stop(self, signum: int) -> None:
        """Send all processes a signal, and start no more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(signum)

    def _note(self, pack: Path, code: int) -> None:
        """Keep in words how a process ended, unless its runs' files say what there is to say."""
        if code < 0:
            self.ends[pack.stem] = f"its process was killed by {signal.Signals(-code).name}"
        elif code not in (0, FAILED):
            text = f"its process ended with exit code {code}"
            log, out = PackFiles(pack).log.name, PackFiles(pack).out.name
            self.ends[pack.stem] = f"{text}: see packs/{log} and packs/{out}"

    def _start(self, pack: Path, index: int, device: str | None) -> subprocess.Popen[bytes] | None:
        # -P and the path: modules are found as here, and not in the folder that this is called in.
        own = {"PYTHONPATH": os.pathsep.join(manifest.search_path())}
        own |= {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        command = [sys.executable, "-P", "-m", "sae_sweeps.launching.job", str(pack), "attached"]
        with self.lock:
            if self.stopped:
                return None
            # What it prints beside its log is a crash's last words.
            with PackFiles(pack).out.open("ab") as out:
                # From the end of its stdin a process learns that this one is gone.
                process = subprocess.Popen(
                    command, env=os.environ | own, stdin=subprocess.PIPE, stdout=out, stderr=out
                )
            self.running.add(process)
            self._share_cores(process.pid, index)
            return process

    def _share_cores(self, pid: int, index: int) -> None:
        """Give each process its part of the cores, so that they do not all use all of them."""
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            with suppress(OSError):  # it may have ended already
                os.sched_setaffinity(pid, cores[index :: self.count] or cores)
