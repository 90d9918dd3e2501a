"""The harvest: streams at several hooks of one model, whose activations come from one pass."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import build
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Split, TargetModel
from sae_sweeps.record.identity import stream_identity
from sae_sweeps.stream.live import Stream, require_held_out
from sae_sweeps.stream.order import Order, Span


class Harvest:
    """The streams of runs whose configs, of what rules activations, differ in the hook only.

    A chunk's token rows are divided into parts, each a task of a pool: as many forward passes as
    it has threads run side by side, and each is the same whatever runs beside it.

    Raises:
        ConfigError: what only the model or the data could tell.
    """

    def __init__(self, configs: Sequence[RunConfig], device: torch.device, pool: Executor) -> None:
        self.device = device
        distinct = {stream_identity(config): config for config in configs}
        targets, self.groups = _opened(distinct, device)
        given, evaluation = configs[0].stream, configs[0].evaluation
        self.order = Order(next(iter(targets.values())), given)
        require_held_out(self.order, evaluation.tokens)
        everyone = targets.values()
        sample = self._read(everyone, "train", (0, given.calibration_tokens), pool).result()
        held_out = self._read(everyone, "held_out", (0, evaluation.tokens), pool).result()
        self._streams: dict[str, Stream | ConfigError] = {}
        for key, target in targets.items():
            read = sample.pop(target), held_out.pop(target)
            try:
                stream = self._streams[key] = Stream(target, given, self.order, *read)
                if target.has_loss and evaluation.ce_tokens:
                    stream.require_predictions()
            except ConfigError as error:  # the others' activations may be in order
                self._streams[key] = error

    def stream(self, config: RunConfig) -> Stream:
        """The stream that a run's config describes.

        Raises:
            ConfigError: nothing can be trained on its activations.
        """
        found = self._streams[stream_identity(config)]
        if isinstance(found, ConfigError):
            raise found
        return found

    def hints(self) -> list[str]:
        """What to know of the streams' activations, in a line each that names the hook."""
        streams = [stream for stream in self._streams.values() if isinstance(stream, Stream)]
        return [f"{s.target.hook or 'activations'}: {hint}" for s in streams for hint in s.hints]

    def begin(self, index: int, streams: Collection[Stream], pool: Executor) -> "Chunks":
        """Start to compute chunk `index`, the same tokens for all of `streams`."""
        span = next(iter(streams)).span(index)
        reading = self._read([stream.target for stream in streams], "train", span, pool)
        return Chunks(index, reading)

    def _read(
        self,
        targets: Collection[TargetModel],
        split: Split,
        span: tuple[int, int],
        pool: Executor,
    ) -> "Reading":
        tokens = self.order.span(split, *span)
        rows = tokens.rows
        parts: list[tuple[list[TargetModel], list[Future[list[Tensor]]]]] = []
        for group in self.groups:
            wanted = [target for target in group if target in targets]
            if wanted:
                read = partial(_activations, wanted, split)
                some = rows.split(group[0].rows_at_once or len(rows))
                parts.append((wanted, [pool.submit(read, part) for part in some]))
        return Reading(tokens, parts)


def _opened(
    configs: Mapping[str, RunConfig], device: torch.device
) -> tuple[dict[str, TargetModel], list[list[TargetModel]]]:
    """A target model for each config, and lists of those that share their passes."""
    targets: dict[str, TargetModel] = {}
    groups: list[list[TargetModel]] = []
    for key, config in configs.items():
        node = config.nodes["target_model"]
        for group in groups:
            beside = group[0].beside(node["hook"])
            if beside is not None:
                targets[key] = beside
                group.append(beside)
                break
        else:
            targets[key] = build(node, build(config.nodes["data"]), device)
            groups.append([targets[key]])
    return targets, groups


def _activations(
    targets: Sequence[TargetModel], split: Split, rows: Int[Tensor, " rows"]
) -> list[Float[Tensor, "tokens d_in"]]:
    """Activations of targets that share their passes."""
    if len(targets) == 1:
        return [targets[0].activations(split, rows)]
    return targets[0].activations_at([target.hook for target in targets], split, rows)


@dataclass(frozen=True)
class Reading:
    """Unscaled activations of a span of tokens, on their way."""

    span: Span
    parts: list[tuple[list[TargetModel], list[Future[list[Tensor]]]]]
    """targets that share their passes, and what comes of each part of the rows"""

    def result(self) -> dict[TargetModel, Tensor]:
        """Wait; activations [tokens, d_in] by target model."""
        found: dict[TargetModel, Tensor] = {}
        for targets, futures in self.parts:
            parts = [future.result() for future in futures]
            for target, acts in zip(targets, zip(*parts, strict=True), strict=True):
                found[target] = self.span.of(torch.cat(acts))
        return found


class Chunks:
    """A chunk of each of several streams, on its way."""

    def __init__(self, index: int, reading: Reading) -> None:
        self.index, self.reading = index, reading

    def wait(self) -> None:
        """Wait until all is computed; raises what a pass raised."""
        self._acts = self.reading.result()
        self.reading.parts.clear()

    def take(self, stream: Stream) -> Tensor:
        """The chunk [chunk, d_in] of a stream, scaled and shuffled; it can be had once.

        Raises:
            FloatingPointError: its activations are not finite.
        """
        return stream.shuffled(self._acts.pop(stream.target), self.index)

    def cancel(self) -> None:
        """Leave out what has not begun."""
        for _, futures in self.reading.parts:
            for future in futures:
                future.cancel()
