"""Loads language models and tokenizers, from the hub or a folder; what is wrong is one line."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sae_sweeps import embedded
from sae_sweeps.run import ConfigError, one_line
from sae_sweeps.target_model.passes import Bridged, Passes, Plain
from sae_sweeps.target_model.sites import site


class Loader:
    """A model by the name of `target_model.model`, whose parts are loaded as they are needed.

    Transformers and TransformerLens are imported in here, since that takes three seconds.

    Raises:
        ConfigError: there is no such model, or it may not be had, or it does not load.
    """

    def __init__(
        self, model: str, revision: str | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        from transformer_lens.model_bridge.sources._hf_format import (
            determine_architecture_from_hf_config,
        )
        from transformer_lens.tools.model_registry.registry_io import resolve_model_alias
        from transformers import AutoConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()
        self.name, self.revision, self.device, self.dtype = model, revision, device, dtype
        folder = Path(model).expanduser()
        place = embedded.MODEL if model == "embedded" else folder if folder.is_dir() else None
        self.place = str(place or resolve_model_alias(model) or model)
        with self._worded():
            self.config: Any = AutoConfig.from_pretrained(self.place, revision=revision)
            self.architecture = determine_architecture_from_hf_config(self.config)

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts each next token."""
        from transformer_lens.model_bridge.sources.transformers.helpers import (
            get_hf_model_class_for_architecture,
        )
        from transformers import AutoModelForCausalLM

        return get_hf_model_class_for_architecture(self.architecture) is AutoModelForCausalLM

    def tokenizer(self) -> Any:
        """The model's tokenizer, unchanged."""
        from transformers import AutoTokenizer

        with self._worded():
            return AutoTokenizer.from_pretrained(self.place, revision=self.revision)

    def passes(self, hook: str, compatibility_mode: bool) -> Passes:
        """The model, its weights loaded, `hook` attached: plain if that has it, else the bridge."""
        if self.has(hook) and not compatibility_mode:
            plain = self._plain()
            if plain.attach(hook):
                return plain
            del plain  # its weights make room for the bridge's
        bridged = self._bridged(compatibility_mode)
        bridged.attach(hook)
        return bridged

    def has(self, hook: str) -> bool:
        """Whether a hook may be what a plain module takes or gives, as far as names tell."""
        return self.is_causal and site(self._components, hook) is not None

    def _plain(self) -> Passes:
        """Hugging Face's own modules, with the fastest attention that computes the same."""
        from transformers import AutoModelForCausalLM

        with self._worded():
            model: Any = AutoModelForCausalLM.from_pretrained(
                self.place, revision=self.revision, dtype=self.dtype
            )
            return Plain(model.to(self.device).eval().requires_grad_(False), self._components)

    def _bridged(self, compatibility_mode: bool) -> Passes:
        """TransformerLens' bridge around them."""
        from transformer_lens.model_bridge import TransformerBridge

        with self._worded():
            bridge: Any = TransformerBridge.boot_transformers(
                self.place, revision=self.revision, device=str(self.device), dtype=self.dtype
            )
            if compatibility_mode:
                bridge.enable_compatibility_mode(disable_warnings=True)
            return Bridged(bridge.eval().requires_grad_(False))

    @cached_property
    def _components(self) -> dict[str, Any]:
        """What TransformerLens calls the parts of this architecture."""
        from transformer_lens.factories.architecture_adapter_factory import (
            ArchitectureAdapterFactory,
        )
        from transformer_lens.model_bridge.sources._bridge_builder import (
            build_bridge_config_from_hf,
        )

        with self._worded():
            given = build_bridge_config_from_hf(
                self.config, self.architecture, self.place, self.dtype
            )
            adapter = ArchitectureAdapterFactory.select_architecture_adapter(given)
            return {**(adapter.component_mapping or {})}

    @contextmanager
    def _worded(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # whatever a damaged or foreign folder makes the loaders raise
            reason = one_line(error)[:200]
            text = f"target_model.model is {self.name!r}: it does not load ({reason})"
            raise ConfigError(text) from error


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it faster than in float32, else float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        features: Mapping[str, Any] = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        gains = any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if gains else torch.float32
