"""Loads language models and tokenizers, from the hub or a folder; what is wrong is one line."""

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sae_sweeps import embedded
from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.system import hugging_face
from sae_sweeps.target_model import fetching
from sae_sweeps.target_model.passes import Bridged, Passes, Plain
from sae_sweeps.target_model.sites import site

CAUSAL = ("AutoModelForCausalLM", "AutoModelForImageTextToText")
"""Classes of transformers; the second one's models read texts without images too."""


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
            self.config: Any = AutoConfig.from_pretrained(
                self.place, revision=revision, trust_remote_code=False
            )
            self.architecture = determine_architecture_from_hf_config(self.config)

    @property
    def is_causal(self) -> bool:
        """Whether the model predicts each next token of a text."""
        return self._model_class.__name__ in CAUSAL

    @cached_property
    def _model_class(self) -> Any:
        """What of transformers loads this architecture."""
        from transformer_lens.model_bridge.sources.transformers.helpers import (
            get_hf_model_class_for_architecture,
        )

        return get_hf_model_class_for_architecture(self.architecture)

    def tokenizer(self) -> Any:
        """The model's tokenizer, unchanged."""
        from transformers import AutoTokenizer

        with self._worded():
            made = AutoTokenizer.from_pretrained(
                self.place, revision=self.revision, trust_remote_code=False
            )
            if len(made) <= len(made.all_special_ids):  # what some classes make of no files
                raise ValueError("its tokenizer knows no text")
            return made

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
        with self._worded(), self._told():
            model: Any = self._model_class.from_pretrained(
                self.place, revision=self.revision, dtype=self.dtype, trust_remote_code=False
            )
            return Plain(model.to(self.device).eval().requires_grad_(False), self._components)

    def _bridged(self, compatibility_mode: bool) -> Passes:
        """TransformerLens' bridge around them."""
        from transformer_lens.model_bridge import TransformerBridge

        with self._worded(), self._told():
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
            if self._of_hub:
                hugging_face.settle()
            yield
        except Exception as error:  # whatever a damaged or foreign folder makes the loaders raise
            raise ConfigError(self._fault(error)) from error

    def _told(self) -> AbstractContextManager[None]:
        folder = hugging_face.cache_folder() / f"models--{self.place.replace('/', '--')}"
        return fetching.told(self.name, folder) if self._of_hub else nullcontext()

    @property
    def _of_hub(self) -> bool:
        return hugging_face.is_name(self.place) and not Path(self.place).is_dir()

    def _fault(self, error: Exception) -> str:
        """Say in one line why the model does not load."""
        repository = hugging_face.Repository(
            "target_model.model", self.name, self.revision, self.place
        )
        refused = hugging_face.worded(error, repository) if self._of_hub else ""
        if refused:
            return refused
        folder = (
            hugging_face.snapshot(self.place, self.revision) if self._of_hub else Path(self.place)
        )
        if (
            folder
            and not hugging_face.without_weights(folder)
            and not hugging_face.has_tokenizer(folder)
        ):
            return (
                f"{repository.what}it has no tokenizer: save the model in a folder of your own, "
                "with a tokenizer beside it."
            )
        return f"{repository.what}it does not load ({one_line(error)[:200]})"


def dtype_for(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device computes in it faster than in float32, else float32."""
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        gains = device.type == "cpu" and _cpu_has("avx512_bf16", "amx_bf16", "bf16")
    return torch.bfloat16 if gains else torch.float32


def is_slow(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a CPU has no instructions for a type's products."""
    on_cpu = device.type == "cpu" and dtype == torch.float16
    return on_cpu and not _cpu_has("avx512_fp16", "amx_fp16", "fp16")


def _cpu_has(*features: str) -> bool:
    told = getattr(torch.cpu, "get_capabilities", dict[str, Any])  # not in every torch
    found: Mapping[str, Any] = told()
    return any(found.get(feature) for feature in features)
