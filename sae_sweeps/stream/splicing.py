"""What becomes of a model's predictions when some tokens' activations are replaced."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweeps.interfaces import SplicedLosses, Split, TargetModel

Replace = Callable[[Float[Tensor, "tokens d_in"]], Float[Tensor, "tokens d_in"]]
"""Gives what stands for unscaled activations of consecutive tokens."""
Choose = Callable[[Bool[Tensor, "rows width"], Float[Tensor, "rows width d_in"]], Tensor]
"""Of the text of a few rows, told by True, chooses the tokens to replace by their activations."""


def losses_where(
    target: TargetModel,
    split: Split,
    rows: Int[Tensor, " rows"],
    text: Bool[Tensor, "rows width"],
    choose: Choose,
    replace: Replace,
) -> SplicedLosses:
    """Losses of the predictions made at chosen tokens, whose activations alone are replaced.

    Differentiable through `replace`, which is shown the chosen tokens of a few rows at a time, in
    order. Both losses are laid end to end, as [predictions].
    """
    chosen: list[Tensor] = []

    def splice(acts: Float[Tensor, "some width d_in"]) -> Float[Tensor, "some width d_in"]:
        done = sum(map(len, chosen))
        some = text[done : done + len(acts)].to(acts.device)
        chosen.append(choose(some, acts))
        spliced = acts.clone()
        spliced[chosen[-1]] = replace(acts[chosen[-1]]).to(acts.dtype)
        return spliced

    losses = target.spliced_losses(split, rows, splice)
    where = torch.cat(chosen)[:, : losses.ce.shape[1]]  # the last token predicts nothing
    return SplicedLosses(losses.ce[where], losses.kl[where])


def in_order(replacements: Float[Tensor, "tokens d_in"]) -> Replace:
    """Hand out replacements from first to last."""
    done = 0

    def replace(acts: Float[Tensor, "some d_in"]) -> Float[Tensor, "some d_in"]:
        nonlocal done
        done += len(acts)
        return replacements[done - len(acts) : done]

    return replace
