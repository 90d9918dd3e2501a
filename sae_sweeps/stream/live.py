"""The live stream: activations computed as needed, in an order that options alone define."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweeps.config.options import StreamOptions
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Architecture, Divergence, SplicedLosses, Split, TargetModel
from sae_sweeps.stream.hints import hints
from sae_sweeps.stream.order import HELD_OUT_SEED, Order, permutation
from sae_sweeps.stream.splicing import Replace, in_order, losses_where

PROBED_TOKENS = 1024
NO_PREDICTIONS = (
    "target_model: its predictions are not finite: its numbers may be too large for "
    "target_model.dtype above the hook; evaluation.ce_tokens=0 does without predictions."
)


class Stream:
    """Scaled activation batches; chunk i is a pure function of target model, data and options.

    Token rows are permuted before the forward pass, then the tokens of a chunk are shuffled: nearly
    as good as a permutation of all tokens, without their being in memory. One factor scales
    activations to unit mean square norm, E||x||^2 = 1; where options say so, their mean is taken
    off before (arXiv 2605.31518). Both are folded back into the saved weights.

    Tokens that are no text are in no part of it: not in scale, mean or batches, not in what is
    measured on. Special tokens and first positions are known from the rows (see `positions`).
    With `max_norm`, tokens of more than so many times the median norm are left out as well: their
    places in a chunk are taken by others of the chunk, which come twice.

    Args:
        order: of the target model's rows.
        sample: the unscaled calibration tokens.
        held_out: the first unscaled held-out tokens, as many as are measured on.

    Raises:
        ConfigError: activations are not finite, or all zero.
    """

    def __init__(
        self,
        target: TargetModel,
        given: StreamOptions,
        order: Order,
        sample: Float[Tensor, "tokens d_in"],
        held_out: Float[Tensor, "held_out d_in"],
    ) -> None:
        self.target, self.given, self.order = target, given, order
        self.batches_per_chunk = given.chunk_tokens // given.batch_tokens
        self.chunk_tokens = self.batches_per_chunk * given.batch_tokens
        if fault := fault_of(sample, target) or fault_of(held_out, target):
            raise ConfigError(fault)
        self.longest = _longest(sample, given.max_norm)
        """norm of unscaled activations above which a token is left out"""
        measured = held_out[self.usable(held_out)]
        passed_over = order.span("held_out", 0, len(held_out)).passed_over
        self.left_out = passed_over + len(held_out) - len(measured)
        """held-out tokens that were passed over on the way to those measured on"""
        sample, held_out = sample[self.usable(sample)], measured
        self.hints = list(hints(sample, given))
        """what to know of the activations, in a line each"""
        self.raw_mean = sample.mean(0)
        self.offset = self.raw_mean if given.centre else torch.zeros_like(self.raw_mean)
        norm = (sample - self.offset).pow(2).sum(1).mean().sqrt().item()
        if norm == 0 or not math.isfinite(norm):
            raise ConfigError("target_model: its activations are all zero, or too large.")
        self.scale = 1 / norm
        self.mean = self.scaled(self.raw_mean)
        shuffled = permutation(len(held_out), HELD_OUT_SEED, 2, 0)
        self.held_out: Float[Tensor, "held_out d_in"] = self.scaled(held_out)[shuffled]
        """scaled; shuffled, so that batches look like training's"""
        self._reference_ce: dict[int, dict[str, float]] = {}

    def usable(self, acts: Float[Tensor, "*tokens d_in"]) -> Bool[Tensor, "*tokens"]:
        """True where an unscaled activation is not so long that its token is left out."""
        return torch.linalg.vector_norm(acts, dim=-1) <= self.longest

    def scaled(self, acts: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any d_in"]:
        """The target model's activations as SAEs are trained on them."""
        return (acts - self.offset) * self.scale

    def unscaled(self, x: Float[Tensor, "*any d_in"]) -> Float[Tensor, "*any d_in"]:
        """Scaled activations, or reconstructions, as the target model has them."""
        return x / self.scale + self.offset

    @torch.no_grad()
    def unscale(self, sae: Architecture) -> None:
        """Fold scale and offset into a trained SAE's weights: it now takes unscaled activations."""
        sae.rescale(1 / self.scale)
        sae.b_dec.add_(self.offset)

    @torch.no_grad()
    def rescale(self, sae: Architecture) -> None:
        """The inverse of `unscale`."""
        sae.b_dec.sub_(self.offset)
        sae.rescale(self.scale)

    def require(self, tokens: int) -> None:
        """Refuse a run longer than the training data, unless they may repeat."""
        held = self.order.size("train")
        if tokens > held and not self.given.repeat:
            raise ConfigError(
                f"training.tokens is {tokens}: the data hold {held} training tokens"
                f"{self.order.besides('train')}; set stream.repeat=true to go over them again."
            )

    def span(self, index: int) -> tuple[int, int]:
        """Where a chunk begins and ends; where data do not repeat, the last one ends with them."""
        start = index * self.chunk_tokens
        stop = start + self.chunk_tokens
        return start, stop if self.given.repeat else min(stop, self.order.size("train"))

    def shuffled(
        self, tokens: Float[Tensor, "chunk d_in"], index: int
    ) -> Float[Tensor, "chunk d_in"]:
        """Chunk `index`, of the unscaled tokens of its span.

        Raises:
            FloatingPointError: an activation is not finite.
        """
        if fault := fault_of(tokens, self.target):
            raise FloatingPointError(fault)
        order = permutation(len(tokens), self.given.seed, 1, index).to(tokens.device)
        if self.given.max_norm is not None:
            left = order[self.usable(tokens)[order]]
            order = left[torch.arange(len(order), device=left.device) % max(1, len(left))]
        return self.scaled(tokens[order])

    def contexts(self, start: int, tokens: int) -> tuple[Float[Tensor, "batch d_in"], Divergence]:
        """Whole token rows from training token `start` on, in order, and their divergence.

        As many rows as `tokens` used tokens fill, one at least: calls that follow one another give
        every row once. `batch` is the rows' number of used tokens, about `tokens`.
        """
        first, last = (self.order.row_of("train", token) for token in (start, start + tokens))
        rows = self.order.rows("train", first, max(first + 1, last))
        acts = self.target.activations("train", rows)
        text = self.order.positions.used("train", rows)
        used = text.flatten().to(acts.device) & self.usable(acts)
        where = used.view_as(text).cpu()

        def the_same(text: Tensor, _acts: Tensor) -> Tensor:
            return text  # the pass may round otherwise, so that another token would be too long

        def divergence(recon: Float[Tensor, "batch d_in"]) -> Float[Tensor, ""]:
            replace = in_order(self.unscaled(recon))
            return losses_where(self.target, "train", rows, where, the_same, replace).kl.mean()

        return self.scaled(acts[used]), divergence

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], replace: Replace
    ) -> SplicedLosses:
        """Losses of predictions, [predictions], with the activations of used tokens replaced."""

        def chosen(text: Tensor, acts: Tensor) -> Tensor:
            return text & self.usable(acts)

        text = self.order.positions.used(split, rows)
        return losses_where(self.target, split, rows, text, chosen, replace)

    @torch.no_grad()
    def reference_ce(self, tokens: int) -> dict[str, float]:
        """Cross-entropy (nats) of the clean model, and with the activation replaced; kept.

        By `clean`, `zero` and `mean`, the activations' mean over the calibration tokens.
        """
        if tokens not in self._reference_ce:
            rows = self.held_out_rows(tokens)
            replacements: dict[str, Replace] = {
                "clean": torch.clone,
                "zero": torch.zeros_like,
                "mean": lambda acts: self.raw_mean.expand_as(acts),
            }
            found = {
                name: self.spliced_losses("held_out", rows, replace).ce.double().mean().item()
                for name, replace in replacements.items()
            }
            if not math.isfinite(found["clean"]):
                raise FloatingPointError(NO_PREDICTIONS)
            self._reference_ce[tokens] = found
        return self._reference_ce[tokens]

    @torch.no_grad()
    def require_predictions(self) -> None:
        """Refuse a model that overflows above the hook, as far as a few rows tell; ConfigError."""
        rows = self.held_out_rows(min(PROBED_TOKENS, self.order.size("held_out")))
        if not self.spliced_losses("held_out", rows, torch.clone).ce.isfinite().all():
            raise ConfigError(NO_PREDICTIONS)

    def held_out_rows(self, tokens: int) -> Int[Tensor, " rows"]:
        """Rows that hold at least `tokens` used held-out tokens, in the order of `held_out`."""
        return self.order.span("held_out", 0, tokens).rows


def _longest(sample: Float[Tensor, "tokens d_in"], times: float | None) -> float:
    """So many times the median norm."""
    if times is None:
        return math.inf
    return times * torch.linalg.vector_norm(sample, dim=1).median().item()


def require_held_out(order: Order, tokens: int) -> None:
    """Refuse an evaluation of more tokens than there are."""
    held = order.size("held_out")
    if tokens > held:
        besides = order.besides("held_out")
        text = f"evaluation.tokens is {tokens}: the data hold {held} held-out tokens{besides}."
        raise ConfigError(text)


def fault_of(acts: Float[Tensor, "tokens d_in"], target: TargetModel) -> str:
    """Say what is wrong with activations that are not all numbers; nothing where they are."""
    wrong = len(acts) - int(acts.isfinite().all(1).count_nonzero())
    if not wrong:
        return ""
    text = f"target_model: its activations are not finite on {wrong} of {len(acts)} tokens; "
    dtype = target.description.get("model_dtype")
    if dtype == "float16":
        return f"{text}target_model.dtype=float16 ends at 65,504, use bfloat16 or float32."
    return f"{text}its weights or files are damaged."
