"""When a run in training is saved, and who writes it: training itself, or a thread beside it."""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from logging import Logger
from threading import Lock

import torch
from torch import Tensor

from sae_sweeps.engine.device import looks_whole
from sae_sweeps.record import checkpoint
from sae_sweeps.record.checkpoint import Checkpoint
from sae_sweeps.record.folder import RunFolder


class Saving:
    """Saves a run from time to time, and when it is asked to.

    On an accelerator the state is copied, which takes it a moment, and a thread writes the copy
    while training goes on. All runs of the process share that thread, and take turns: the host
    holds one copy at most.
    """

    _thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
    _turn = Lock()

    def __init__(self, files: RunFolder, minutes: float, device: torch.device, log: Logger) -> None:
        self.files, self.seconds, self.log = files, 60 * minutes, log
        self.aside = looks_whole(device)
        self.saved_tokens = 0
        self.begin()

    def begin(self) -> None:
        """Count the time from now on."""
        self.time = time.monotonic()
        self._writing: tuple[int, Future[None]] | None = None

    def now(self, saved: Checkpoint) -> None:
        """Write a checkpoint.

        Raises:
            OSError: the disk does not take it; the checkpoints before are still there.
        """
        checkpoint.save(self.files, saved)
        self.time, self.saved_tokens = time.monotonic(), saved.tokens

    def if_due(self, make: Callable[[], Checkpoint]) -> None:
        """Write a checkpoint, or begin to, if the last one is old."""
        if self._writing is not None and self._writing[1].done():
            self.settle()
        if self._writing is not None or time.monotonic() - self.time < self.seconds:
            return
        if not self.aside:
            self._tried(lambda: self.now(make()))
        elif self._turn.acquire(blocking=False):  # else after the next batch
            self._tried(lambda: self._begin_to_write(make))

    def settle(self) -> None:
        """Wait until the checkpoint that is being written, if one is, has been."""
        if self._writing is not None:
            tokens, future = self._writing
            self._writing = None
            if self._tried(future.result):
                self.saved_tokens = tokens

    def _begin_to_write(self, make: Callable[[], Checkpoint]) -> None:
        with ExitStack() as failed:
            failed.callback(self._turn.release)
            saved = make()
            copy = Copy(saved.tensors)
            self.time = time.monotonic()
            self._writing = saved.tokens, self._thread.submit(self._write, saved, copy)
            failed.pop_all()

    def _write(self, saved: Checkpoint, copy: "Copy") -> None:
        try:
            checkpoint.save(self.files, replace(saved, tensors=copy.tensors()))
        finally:
            self._turn.release()

    def _tried(self, write: Callable[[], object]) -> bool:
        """Say whether it could be written: to go on without costs less than to give up the run."""
        try:
            write()
        except OSError as error:
            self.time = time.monotonic()
            text = "no checkpoint could be written, training goes on: %s"
            self.log.warning(text, error)
            return False
        return True


class Copy:
    """A copy of tensors on the host; on CUDA made behind what is queued, and nobody waits."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = {name: _copied(tensor.detach()) for name, tensor in tensors.items()}
        self._events = list[torch.cuda.Event]()
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            self._events.append(torch.cuda.Event())
            self._events[-1].record(torch.cuda.current_stream(device))

    def tensors(self) -> dict[str, Tensor]:
        """The copies, once they are there."""
        for event in self._events:
            event.synchronize()
        return self._tensors


def _copied(tensor: Tensor) -> Tensor:
    copy = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
    return copy.copy_(tensor, non_blocking=True)
