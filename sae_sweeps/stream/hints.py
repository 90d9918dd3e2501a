"""What to know of activations before SAEs are trained on them."""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from sae_sweeps.config.options import StreamOptions

RULES = 0.5
"""Share above which one thing rules a whole; our choice."""
FEW = 0.001
"""Share of the tokens that are a few; our choice."""


def hints(sample: Float[Tensor, "tokens d_in"], given: StreamOptions) -> Iterator[str]:
    """Say in a line each what rules activations as they are reconstructed, and what helps.

    `sample` are unscaled tokens that are used: their mean, if it is not taken off, a dimension, or
    a few of them may make up most of the squared norm, which is what a reconstruction's error is
    compared with.
    """
    mean = sample.mean(0)
    of_mean = (mean.pow(2).sum() / sample.pow(2).sum(1).mean()).item()
    if of_mean > RULES and not given.centre:
        text = f"the mean makes up {of_mean:.0%} of the activations' mean squared norm"
        yield f"{text}: stream.centre=true takes it off"
    squares = (sample - mean).pow(2)
    total = squares.sum().item()
    if not total:
        return
    of_dimensions = squares.sum(0) / total
    largest = int(of_dimensions.argmax())
    if len(mean) > 2 and of_dimensions[largest] > RULES:
        share = f"{of_dimensions[largest].item():.0%}"
        yield f"dimension {largest} has {share} of the activations' variance, and FVU is about it"
    few = max(1, round(FEW * len(sample)))
    of_few = squares.sum(1).topk(few).values.sum().item() / total
    if of_few > RULES and given.max_norm is None and few < RULES * len(sample):
        text = f"{few} of {len(sample)} tokens have {of_few:.0%} of the activations' variance"
        yield f"{text}: stream.max_norm=10 leaves those out whose norm is ten times the median"
