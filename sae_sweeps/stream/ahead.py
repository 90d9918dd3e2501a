"""Chunks read ahead on a device that computes while the host goes on: by a thread of their own."""

from collections.abc import Collection
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_sweeps.stream.harvest import Harvest
from sae_sweeps.stream.live import Stream


class Inline(Executor):
    """Does at once what it is given."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done = Future[Any]()
        try:
            done.set_result(fn(*args, **kwargs))
        except BaseException as error:  # a signal, too, is for who asks for the result
            done.set_exception(error)
        return done


class Ahead:
    """Reads a chunk while members train on the one before.

    On CUDA in a stream of its own, so that the model's operators run beside the members'. Who takes
    a chunk has its own work queued behind the event that tells that it is there: nobody waits.
    """

    def __init__(self, harvest: Harvest, device: torch.device) -> None:
        self.harvest = harvest
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="harvest")
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def begin(self, index: int, streams: Collection[Stream]) -> "Coming":
        """Start to compute chunk `index` of some streams."""
        return Coming(index, self._thread.submit(self._read, index, streams))

    def _read(self, index: int, streams: Collection[Stream]) -> "Read":
        found: dict[Stream, Tensor | Exception] = {}
        with torch.cuda.stream(self._stream):
            chunks = self.harvest.begin(index, streams, Inline())
            chunks.wait()
            for stream in streams:
                try:
                    found[stream] = chunks.take(stream)
                except Exception as error:  # the other streams' activations may be in order
                    found[stream] = error
        if self._stream is None:
            return Read(found, None)
        event = torch.cuda.Event()
        event.record(self._stream)
        return Read(found, event)


class Read(NamedTuple):
    """Chunks that a thread has read, or will have once its device has come to the event."""

    chunks: dict[Stream, Tensor | Exception]
    event: torch.cuda.Event | None


class Coming:
    """A chunk of each of several streams, on its way; to be used as `harvest.Chunks`."""

    def __init__(self, index: int, reading: Future[Read]) -> None:
        self.index, self.reading = index, reading

    def wait(self) -> None:
        """Wait until all is read; raises what a pass raised."""
        self._read = self.reading.result()

    def take(self, stream: Stream) -> Tensor:
        """The chunk [chunk, d_in] of a stream, scaled and shuffled; it can be had once.

        Raises:
            FloatingPointError: its activations are not finite.
        """
        chunk = self._read.chunks.pop(stream)
        if isinstance(chunk, Exception):
            raise chunk
        if self._read.event is not None:
            here = torch.cuda.current_stream(chunk.device)
            here.wait_event(self._read.event)
            chunk.record_stream(here)  # its memory is not given away before this stream is done
        return chunk

    def cancel(self) -> None:
        """Leave it out if it has not begun."""
        self.reading.cancel()
