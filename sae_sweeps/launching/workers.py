"""Processes on this machine that train frozen packs, one per device at a time."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import TYPE_CHECKING

from sae_sweeps import interrupt
from sae_sweeps.launching.monitor import watch

if TYPE_CHECKING:
    from sae_sweeps.launching.progress import Display

LOOK_EVERY_S = 1.0


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


def work_apart(
    folder: Path,
    packs: Sequence[Path],
    names: Sequence[str],
    given: Sequence[str | None],
    display: "Display",
) -> None:
    """Have one process per device work off the packs, whose runs are `names`.

    What became of the runs is in their files.

    On a signal all of them are told to stop, and save what they have, before it goes on.
    """
    workers = _Workers(given)
    with ThreadPoolExecutor(len(given)) as pool:
        futures = [pool.submit(workers.run, path) for path in packs]
        try:
            over = lambda: all(future.done() for future in futures)  # noqa: E731
            watch(folder, display, names, every_s=LOOK_EVERY_S, stop=over)
        except interrupt.Interrupted:
            with interrupt.deferred():
                workers.stop()
                wait(futures)
            raise


class _Workers:
    """Hands packs to devices as these come free."""

    def __init__(self, given: Sequence[str | None]) -> None:
        self.free: SimpleQueue[tuple[int, str | None]] = SimpleQueue()
        for place in enumerate(given):
            self.free.put(place)
        self.count = len(given)
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.lock = Lock()

    def run(self, pack: Path) -> None:
        """Train a pack in a process of its own, once a device is free."""
        index, device = self.free.get()
        try:
            process = self._start(pack, index, device)
            if process is not None:
                process.wait()
                self.running.discard(process)
        finally:
            self.free.put((index, device))

    def stop(self) -> None:
        """Tell all processes to save and leave, and start no more."""
        with self.lock:
            self.stopped = True
            for process in self.running:
                process.send_signal(signal.SIGTERM)

    def _start(self, pack: Path, index: int, device: str | None) -> subprocess.Popen[bytes] | None:
        own = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
        command = [sys.executable, "-m", "sae_sweeps.launching.job", str(pack)]
        with self.lock:
            if self.stopped:
                return None
            # What it prints beside its log is a crash's last words.
            with pack.with_suffix(".out").open("ab") as out:
                process = subprocess.Popen(
                    command, env=os.environ | own, stdin=subprocess.DEVNULL, stdout=out, stderr=out
                )
            if device is None:
                self._share_cores(process.pid, index)
            self.running.add(process)
            return process

    def _share_cores(self, pid: int, index: int) -> None:
        """Give each process its part of the cores, so that they do not all use all of them."""
        if hasattr(os, "sched_setaffinity"):
            cores = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(pid, cores[index :: self.count] or cores)
