"""Any language model that TransformerLens knows, by hub name or folder, at any of its hooks."""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, final

import torch
from annotated_types import Ge
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweeps.engine.device import looks_whole
from sae_sweeps.errors import ConfigError
from sae_sweeps.interfaces import Data, Rows, Splice, SplicedLosses, Split, TargetModel
from sae_sweeps.marks import Alias
from sae_sweeps.system import interrupt
from sae_sweeps.system.tokenizers import special_ids
from sae_sweeps.target_model.facts import FEW_ROWS, KEPT_BYTES
from sae_sweeps.target_model.loading import Loader, dtype_for, is_slow
from sae_sweeps.target_model.passes import Visit

log = logging.getLogger("sae_sweeps.target_model")

MIN_CONTEXT = 3
"""BOS, a token to splice at, and one to predict from it"""
MANY_TOKENS = 2**15
"""Tokens of a pass that keep an accelerator busy: with fewer it waits for its host (estimated)"""


@final
class TransformerLens(TargetModel):
    """Activations at `hook` of `model`, BOS dropped; nothing above the hook is computed.

    Hugging Face's own modules are run wherever the hook is what one of them takes or gives: with
    attention that need not be eager, and from several threads at once. Heads are then side by
    side: `blocks.0.attn.hook_z` has width n_heads * d_head. TransformerLens' bridge is run for
    all other hooks, and in its `compatibility_mode`, which changes the residual stream.

    Raises:
        ConfigError: the model cannot be loaded or does not fit the tokens, or has no such hook of
            shape [rows, seq, d_in].
    """

    def __init__(
        self,
        data: Data,
        device: torch.device,
        *,
        model: str,
        hook: str,
        revision: str | None,
        dtype: Literal["auto", "float32", "bfloat16", "float16"],
        compatibility_mode: bool,
        rows_per_forward: Annotated[int | Literal["auto"], Ge(1), Alias("auto", 16)],
    ) -> None:
        self.device = device
        loader = Loader(model, revision, device, dtype_for(dtype, device))
        if is_slow(loader.dtype, device):
            text = "target_model.dtype is %r: 100 times slower on this CPU than bfloat16 or float32"
            log.warning(text, dtype)
        self.has_loss = loader.is_causal
        self.passes = loader.passes(hook, compatibility_mode)
        self.hook = hook
        self.d_in = self._width(hook)
        tokenizer = loader.tokenizer()
        splits: tuple[Split, Split] = ("train", "held_out")
        self.tokens = {split: data.rows(split, tokenizer) for split in splits}
        self.special_ids = torch.tensor(special_ids(tokenizer))
        for tokens in self.tokens.values():
            _check_fit(tokens, loader.config.get_text_config())
        seq = self.tokens["train"].shape[1]
        self.tokens_per_row = seq - 1
        self.rows_at_once = rows_of_a_pass(rows_per_forward, seq, device)
        # With logits of the whole vocabulary, of which an accelerator has enough to do sooner.
        self.rows_with_logits = FEW_ROWS if rows_per_forward == "auto" else rows_per_forward
        self._clean: dict[tuple[int, ...], Tensor] = {}
        self.description = {
            "model_name": model,
            "model_revision": revision,
            "model_dtype": str(loader.dtype).removeprefix("torch."),
            "hook_name": hook,
            "tokens_sha256": self.tokens["train"].sha256,
            "context_size": self.tokens_per_row + 1,
            "prepend_bos": True,
        }

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        from sae_sweeps.target_model import judging

        yield from judging.models_and_hooks_exist(config)
        yield from judging.contexts_fit(config)

    @staticmethod
    def width(config: Mapping[str, Any]) -> int | None:
        from sae_sweeps.target_model import facts

        return facts.width(config["target_model"])

    @staticmethod
    def parameters(config: Mapping[str, Any]) -> tuple[int, int] | None:
        from sae_sweeps.target_model import facts

        found = facts.parameters(config["target_model"])
        return (found.below, found.passed) if found else None

    @staticmethod
    def model_bytes(config: Mapping[str, Any]) -> tuple[int, int]:
        from sae_sweeps.target_model import facts

        return facts.model_bytes(config)

    @staticmethod
    def is_here(config: Mapping[str, Any]) -> bool:
        from sae_sweeps.target_model import facts

        return facts.is_here(config["target_model"])

    def _width(self, hook: str) -> int:
        """The activation's width; raises ConfigError for another shape than a residual stream's."""
        some = torch.zeros(2, MIN_CONTEXT, dtype=torch.int64, device=self.device)
        acts = self.passes.activations(some, [hook]).get(hook)
        if acts is None:
            raise ConfigError(f"target_model.hook is {hook!r}: the model's forward pass skips it.")
        if acts.ndim != 3 or acts.shape[:2] != some.shape:
            shape = tuple(acts.shape)
            raise ConfigError(
                f"target_model.hook is {hook!r}: its shape {shape} is not [rows, seq, d_in], "
                f"which here begins with {tuple(some.shape)}."
            )
        return acts.shape[-1]

    def beside(self, hook: str) -> "TransformerLens | None":
        if not self.passes.attach(hook):
            return None
        other = copy.copy(self)
        other.hook = hook
        other.d_in = self._width(hook)
        other.description = self.description | {"hook_name": hook}
        return other

    def row_count(self, split: Split) -> int:
        return self.tokens[split].shape[0]

    def special(
        self, split: Split, rows: Int[Tensor, " rows"]
    ) -> Bool[Tensor, "rows tokens_per_row"]:
        return torch.isin(self.tokens[split][rows][:, 1:], self.special_ids)

    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        return self.activations_at([self.hook], split, rows)[0]

    def activations_at(
        self, hooks: Sequence[str], split: Split, rows: Int[Tensor, " rows"]
    ) -> list[Float[Tensor, "tokens d_in"]]:
        parts: list[list[Tensor]] = []
        for tokens in self.tokens[split][rows].split(self.rows_at_once):
            interrupt.check()
            seen = self.passes.activations(tokens.to(self.device), hooks)
            parts.append([seen[hook][:, 1:].flatten(0, 1).float() for hook in hooks])
        return [torch.cat(acts) for acts in zip(*parts, strict=True)]

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        """As in the interface; the BOS position stays clean, and so its prediction is left out."""
        parts = [self._losses(split, part, splice) for part in rows.split(self.rows_with_logits)]
        return SplicedLosses(*(torch.cat(losses) for losses in zip(*parts, strict=True)))

    def _losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL(clean || spliced) of a few rows.

        Row by row the vocabulary's figures fit a cache: five times as fast as all at once."""

        def replace(hook: str, acts: Tensor) -> Tensor:
            if hook != self.hook:
                return acts
            spliced = splice(acts[:, 1:].float()).to(acts.dtype)
            return torch.cat([acts[:, :1], spliced], dim=1)

        tokens = self.tokens[split][rows].to(self.device)
        losses: list[tuple[Tensor, Tensor]] = []
        logits = self._logits(tokens, replace)
        for row, own, clean in zip(tokens, logits, self._clean_log_probs(split, rows), strict=True):
            interrupt.check()
            spliced = own.float().log_softmax(-1)
            ce = -spliced.gather(-1, row[2:, None]).squeeze(-1)
            losses.append((ce, (clean.exp() * (clean - spliced)).sum(-1)))
        ce, kl = (torch.stack(loss) for loss in zip(*losses, strict=True))
        return ce, kl

    @torch.no_grad()
    def _clean_log_probs(
        self, split: Split, rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows targets vocabulary"]:
        """Log probabilities of the model as it is; those of held-out rows are kept."""
        key = tuple(rows.tolist())
        if split == "held_out" and key in self._clean:
            return self._clean[key]
        found = self._logits(self.tokens[split][rows].to(self.device), None).float().log_softmax(-1)
        kept = sum(clean.nbytes for clean in list(self._clean.values()))
        if split == "held_out" and kept + found.nbytes <= KEPT_BYTES:
            self._clean[key] = found
        return found

    def _logits(
        self, tokens: Int[Tensor, "rows seq"], visit: Visit | None
    ) -> Float[Tensor, "rows targets vocabulary"]:
        """Logits of what can be lost by a splice: BOS and the last position are left out."""
        return self.passes.logits(tokens, visit)[:, 1:-1]


def rows_of_a_pass(given: int | Literal["auto"], seq: int, device: torch.device) -> int:
    """How many rows of `seq` tokens one forward pass takes; `auto` goes by the device."""
    if given != "auto":
        return given
    return max(FEW_ROWS, MANY_TOKENS // seq) if looks_whole(device) else FEW_ROWS


def _check_fit(tokens: Rows, config: object) -> None:
    """Refuse rows that are longer than the model's context or name tokens that it has not."""
    rows, seq = tokens.shape
    if rows == 0 or seq < MIN_CONTEXT:
        raise ConfigError(f"data: {rows} rows of {seq} tokens; rows need {MIN_CONTEXT} at least.")
    longest = getattr(config, "max_position_embeddings", None)
    if longest and seq > longest:
        raise ConfigError(f"data: rows of {seq} tokens, but the model reads at most {longest}.")
    largest, known = int(tokens.ids.max()), getattr(config, "vocab_size", None)
    if known and largest >= known:
        raise ConfigError(f"data: token {largest}, but the model knows {known} tokens.")
