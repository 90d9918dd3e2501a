"""Any language model that TransformerLens knows, by hub name or folder, at any of its hooks."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps import embedded, interrupt
from sae_sweeps.interfaces import Data, Rows, Splice, SplicedLosses, Split, TargetModel
from sae_sweeps.run import ConfigError, did_you_mean, one_line

MIN_CONTEXT = 3
"""BOS, a token to splice at, and one to predict from it"""
KEPT_BYTES = 2**29
"""Clean log probabilities of held-out tokens that are kept, since every run asks for them"""

Change = Callable[[Tensor], Tensor]


@final
class TransformerLens(TargetModel):
    """Activations at `hook` of `model`, BOS dropped; nothing above the hook is computed.

    One permanent hook does with the activation what the present forward pass is for: it keeps it
    and ends the pass there, whatever the hook's name, or replaces it. Threads take turns, since
    the model keeps some state of a pass in its modules.

    Raises:
        ConfigError: the model cannot be loaded or does not fit the tokens, or has no such hook of
            shape [rows, seq, d_in].
    """

    has_loss = True

    def __init__(
        self,
        data: Data,
        device: torch.device,
        *,
        model: str,
        hook: str,
        dtype: Literal["float32", "bfloat16"],
        rows_per_forward: int,
    ) -> None:
        self.device, self.rows_per_forward = device, rows_per_forward
        self.bridge = _boot(model, device, getattr(torch, dtype))
        self._turn = threading.Lock()
        self._change: Change | None = None
        self._clean: dict[tuple[int, ...], Tensor] = {}
        _attach(self.bridge, hook, self._on_hook)
        splits: tuple[Split, Split] = ("train", "held_out")
        self.tokens = {split: data.rows(split, self.bridge.tokenizer) for split in splits}
        for tokens in self.tokens.values():
            _check_fit(tokens, self.bridge.cfg)
        self.tokens_per_row = self.tokens["train"].shape[1] - 1
        first = self.tokens["train"][torch.tensor([0])].to(device)
        self.d_in = _width(hook, self._forward_to_hook(first))
        self.description = {
            "model_name": model,
            "hook_name": hook,
            "context_size": self.tokens_per_row + 1,
            "prepend_bos": True,
        }

    def row_count(self, split: Split) -> int:
        return self.tokens[split].shape[0]

    @torch.inference_mode()
    def activations(self, split: Split, rows: Int[Tensor, " rows"]) -> Float[Tensor, "tokens d_in"]:
        parts = [self._forward_to_hook(part) for part in self._parts(split, rows)]
        return torch.cat([acts[:, 1:] for acts in parts if acts is not None]).flatten(0, 1).float()

    def spliced_losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> SplicedLosses:
        """As in the interface; the BOS position stays clean, and so its prediction is left out."""
        parts = [self._losses(split, part, splice) for part in rows.split(self.rows_per_forward)]
        return SplicedLosses(*(torch.cat(losses) for losses in zip(*parts, strict=True)))

    def _parts(self, split: Split, rows: Int[Tensor, " rows"]) -> list[Tensor]:
        tokens = self.tokens[split][rows]
        return [part.to(self.device) for part in tokens.split(self.rows_per_forward)]

    def _on_hook(self, acts: Tensor, hook: Any) -> Tensor:
        return acts if self._change is None else self._change(acts)

    @contextmanager
    def _changing(self, change: Change | None) -> Generator[None]:
        with self._turn:
            self._change = change
            try:
                yield
            finally:
                self._change = None

    def _forward_to_hook(self, tokens: Int[Tensor, "rows seq"]) -> Tensor | None:
        """The hooked activation; None where the forward pass does not come by."""

        def keep(acts: Tensor) -> Tensor:
            raise _Reached(acts)

        interrupt.check()
        try:
            with self._changing(keep), torch.inference_mode():
                self.bridge(tokens, return_type=None)
        except _Reached as reached:
            return reached.acts
        return None

    def _losses(
        self, split: Split, rows: Int[Tensor, " rows"], splice: Splice
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and KL(clean || spliced) of a few rows.

        Row by row the vocabulary's figures fit a cache: five times as fast as all at once."""

        def replace(acts: Tensor) -> Tensor:
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
        kept = sum(clean.nbytes for clean in self._clean.values())
        if split == "held_out" and kept + found.nbytes <= KEPT_BYTES:
            self._clean[key] = found
        return found

    def _logits(
        self, tokens: Int[Tensor, "rows seq"], change: Change | None
    ) -> Float[Tensor, "rows targets vocabulary"]:
        """Logits of what can be lost by a splice: BOS and the last position are left out."""
        with self._changing(change):
            return self.bridge(tokens, return_type="logits")[:, 1:-1]


class _Reached(Exception):
    """Ends a forward pass at the hook, with what was there."""

    def __init__(self, acts: Tensor) -> None:
        super().__init__()
        self.acts = acts


def _boot(model: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The frozen model; imported here, since that takes three seconds."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    folder = Path(model).expanduser()
    place = embedded.MODEL if model == "embedded" else folder if folder.is_dir() else model
    try:
        bridge: Any = TransformerBridge.boot_transformers(
            str(place), device=str(device), dtype=dtype
        )
    except Exception as error:  # whatever a damaged or foreign folder makes the loaders raise
        reason = one_line(error)[:200]
        text = f"target_model.model is {model!r}: it does not load ({reason})"
        raise ConfigError(text) from error
    return bridge.eval().requires_grad_(False)


def _attach(bridge: Any, hook: str, change: Callable[[Tensor, Any], Tensor]) -> None:
    known = [name for name in bridge.hook_dict if name != hook]
    try:
        bridge.add_hook(hook, change, is_permanent=True)
    except (KeyError, ValueError, AttributeError, RuntimeError) as error:
        text = f"target_model.hook is {hook!r}: the model has none such.{did_you_mean(hook, known)}"
        raise ConfigError(text) from error


def _check_fit(tokens: Rows, cfg: Any) -> None:
    """Refuse rows that are longer than the model's context or name tokens that it has not."""
    rows, seq = tokens.shape
    if rows == 0 or seq < MIN_CONTEXT:
        raise ConfigError(f"data: {rows} rows of {seq} tokens; rows need {MIN_CONTEXT} at least.")
    if cfg.n_ctx and seq > cfg.n_ctx:
        raise ConfigError(f"data: rows of {seq} tokens, but the model reads at most {cfg.n_ctx}.")
    largest = int(tokens.ids.max())
    if cfg.d_vocab and largest >= cfg.d_vocab:
        raise ConfigError(f"data: token {largest}, but the model knows {cfg.d_vocab} tokens.")


def _width(hook: str, acts: Tensor | None) -> int:
    if acts is None:
        raise ConfigError(f"target_model.hook is {hook!r}: the model's forward pass skips it.")
    if acts.ndim != 3:
        shape = tuple(acts.shape)
        raise ConfigError(
            f"target_model.hook is {hook!r}: its shape {shape} is not [rows, seq, d_in]."
        )
    return acts.shape[-1]
