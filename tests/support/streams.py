"""A stream of one target model, read without a harvest."""

from jaxtyping import Float
from torch import Tensor

from sae_sweeps.config.options import StreamOptions
from sae_sweeps.interfaces import Split, TargetModel
from sae_sweeps.stream.live import Stream
from sae_sweeps.stream.order import Order


def read(
    target: TargetModel, order: Order, split: Split, start: int, stop: int
) -> Float[Tensor, "tokens d_in"]:
    """Unscaled tokens [start, stop), in the order of the stream."""
    span = order.span(split, start, stop)
    return span.of(target.activations(split, span.rows))


class Alone(Stream):
    """A stream that reads for itself what a harvest would hand it."""

    def __init__(self, target: TargetModel, given: StreamOptions, held_out: int) -> None:
        order = Order(target, given)
        sample = read(target, order, "train", 0, given.calibration_tokens)
        super().__init__(target, given, order, sample, read(target, order, "held_out", 0, held_out))

    def chunk(self, index: int) -> Float[Tensor, "chunk d_in"]:
        """Chunk `index`, shuffled; `batch_tokens` rows at a time are the batches."""
        tokens = read(self.target, self.order, "train", *self.span(index))
        return self.shuffled(tokens, index)
