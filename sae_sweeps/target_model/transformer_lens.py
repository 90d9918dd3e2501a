"""Any language model that TransformerLens knows, by hub name or folder, at any of its hooks."""

import difflib
import threading
from collections.abc import Callable
from typing import Any, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps import embedded
from sae_sweeps.interfaces import Data, Splice, Split, TargetModel
from sae_sweeps.run import ConfigError


@final
class TransformerLens(TargetModel):
    """Activations at `hook` of `model`, BOS dropped; nothing above the hook is computed.

    One permanent hook reads what this thread wants of the forward pass: to keep the activation and
    stop there, or to replace it. So threads may run the model side by side, and the pass ends at
    the hook whatever its name.

    Raises:
        ConfigError: the model cannot be loaded, or has no such hook of shape [rows, seq, d_in].
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
        self.tap = _Tap()
        _attach(self.bridge, hook, self.tap)
        tokenizer = self.bridge.tokenizer
        self.tokens = {split: data.rows(split, tokenizer) for split in ("train", "held_out")}
        self.tokens_per_row = self.tokens["train"].shape[1] - 1
        probe = self._forward_to_hook(self.tokens["train"][:1].to(device))
        if probe.ndim != 3:
            shape = tuple(probe.shape)
            raise ConfigError(
                f"target_model.hook is {hook!r}: its shape {shape} is not [rows, seq, d_in]."
            )
        self.d_in = probe.shape[-1]
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
        tokens = self.tokens[split][rows]
        parts = [self._forward_to_hook(part)[:, 1:] for part in self._on_device(tokens)]
        return torch.cat(parts).flatten(0, 1).float()

    @torch.inference_mode()
    def ce(self, rows: Int[Tensor, " rows"], splice: Splice) -> Float[Tensor, "rows targets"]:
        """As in the interface; the BOS position stays clean, and so its prediction is left out."""
        tokens = self.tokens["held_out"][rows]
        return torch.cat([self._spliced_ce(part, splice) for part in self._on_device(tokens)])

    def _on_device(self, tokens: Int[Tensor, "rows seq"]) -> list[Tensor]:
        return [part.to(self.device) for part in tokens.split(self.rows_per_forward)]

    def _forward_to_hook(self, tokens: Int[Tensor, "rows seq"]) -> Float[Tensor, "rows seq d_in"]:
        def keep(acts: Tensor) -> Tensor:
            raise _Reached(acts)

        try:
            with self.tap.set(keep), torch.inference_mode():
                self.bridge(tokens, return_type=None)
        except _Reached as reached:
            return reached.acts
        raise RuntimeError("the forward pass ended before its hook")

    def _spliced_ce(self, tokens: Int[Tensor, "rows seq"], splice: Splice) -> Tensor:
        def replace(acts: Tensor) -> Tensor:
            spliced = splice(acts[:, 1:].float()).to(acts.dtype)
            return torch.cat([acts[:, :1], spliced], dim=1)

        with self.tap.set(replace):
            logits = self.bridge(tokens, return_type="logits")[:, 1:-1].float()
        targets = tokens[:, 2:, None]
        # Twice as fast as cross_entropy, which wants the vocabulary in the middle.
        return logits.logsumexp(-1) - logits.gather(-1, targets).squeeze(-1)


class _Reached(Exception):
    """Ends a forward pass at the hook, with what was there."""

    def __init__(self, acts: Tensor) -> None:
        super().__init__()
        self.acts = acts


class _Tap(threading.local):
    """What this thread does with the hooked activation."""

    change: Callable[[Tensor], Tensor] | None = None

    def __call__(self, acts: Tensor, hook: Any) -> Tensor:
        return acts if self.change is None else self.change(acts)

    def set(self, change: Callable[[Tensor], Tensor]) -> "_Tap":
        self.change = change
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.change = None


def _boot(model: str, device: torch.device, dtype: torch.dtype) -> Any:
    """The frozen model; imported here, since that takes three seconds."""
    from transformer_lens.model_bridge import TransformerBridge
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    place = str(embedded.MODEL) if model == "embedded" else model
    try:
        bridge: Any = TransformerBridge.boot_transformers(place, device=str(device), dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"target_model.model is {model!r}: it cannot be loaded ({reason})"
        ) from error
    return bridge.eval().requires_grad_(False)


def _attach(bridge: Any, hook: str, tap: _Tap) -> None:
    known: list[str] = list(bridge.hook_dict)
    try:
        bridge.add_hook(hook, tap, is_permanent=True)
    except (KeyError, ValueError, AttributeError) as error:
        close = difflib.get_close_matches(hook, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(
            f"target_model.hook is {hook!r}: the model has no such hook.{hint}"
        ) from error
