"""Two ways to run a language model's forward pass, with someone looking on at its hooks."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_sweeps.engine import gemm
from sae_sweeps.errors import ConfigError, did_you_mean
from sae_sweeps.target_model.sites import Site, site

Visit = Callable[[str, Tensor], Tensor]
"""Is shown a hook's name and activation, and gives what the pass goes on with."""


class Passes(ABC):
    """A language model whose hooks can be looked at, one forward pass at a time and thread."""

    @abstractmethod
    def attach(self, hook: str) -> bool:
        """Make a hook visible; False where this way of running the model does not have it.

        Raises:
            ConfigError: no way of running the model has it.
        """

    @abstractmethod
    def logits(
        self, tokens: Int[Tensor, "rows seq"], visit: Visit | None
    ) -> Float[Tensor, "rows seq vocabulary"]:
        """Run a whole pass; `visit` is shown every attached hook's activation as it comes by."""

    def activations(
        self, tokens: Int[Tensor, "rows seq"], hooks: Sequence[str]
    ) -> dict[str, Tensor]:
        """Attached hooks' activations; the pass ends with the last of them, whatever their names.

        Those that the pass does not come by are missing.
        """
        wanted = set(hooks)
        seen: dict[str, Tensor] = {}

        def keep(hook: str, acts: Tensor) -> Tensor:
            if hook in wanted:
                seen[hook] = acts
                if len(seen) == len(wanted):
                    raise _Reached
            return acts

        try:
            with torch.inference_mode():
                self.logits(tokens, keep)
        except _Reached:
            pass
        return seen


class _Reached(Exception):
    """Ends a forward pass once all that is wanted of it was seen."""


@final
class Plain(Passes):
    """Hugging Face's modules as they are: attention need not be eager, and threads run at once.

    `components` is TransformerLens' mapping of names for the model's architecture.
    """

    def __init__(self, model: Any, components: dict[str, Any]) -> None:
        self.model, self.components = model, components
        self._of_thread = threading.local()
        self._attached: set[str] = set()

    def attach(self, hook: str) -> bool:
        if hook in self._attached:
            return True
        place = site(self.components, hook)
        if place is None:
            return False
        try:
            module = self.model.get_submodule(place.module)
        except AttributeError:  # a part that only TransformerLens tells from others
            return False
        self._register(module, place, hook)
        self._attached.add(hook)
        return True

    def _register(self, module: torch.nn.Module, place: Site, hook: str) -> None:
        def given(_module: Any, words: tuple[Any, ...], named: dict[str, Any]) -> Any:
            if words:
                return (self._visited(hook, words[0]), *words[1:]), named
            first = next(iter(named))  # hidden states come first, if by name
            return words, named | {first: self._visited(hook, named[first])}

        def gave(_module: Any, _words: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (self._visited(hook, output[0]), *output[1:])
            return self._visited(hook, output)

        if place.side == "in":
            module.register_forward_pre_hook(given, with_kwargs=True)
        else:
            module.register_forward_hook(gave)

    def _visited(self, hook: str, acts: Tensor) -> Tensor:
        visit: Visit | None = getattr(self._of_thread, "visit", None)
        if visit is None:
            return acts
        rows, seq = self._of_thread.shape
        if acts.ndim == 2 and len(acts) == rows * seq:  # some models lay rows end to end
            return visit(hook, acts.unflatten(0, (rows, seq))).flatten(0, 1)
        return visit(hook, acts)

    def logits(
        self, tokens: Int[Tensor, "rows seq"], visit: Visit | None
    ) -> Float[Tensor, "rows seq vocabulary"]:
        self._of_thread.visit, self._of_thread.shape = visit, tokens.shape
        try:
            with gemm.faster(tokens.device):
                return self.model(input_ids=tokens, use_cache=False).logits
        finally:
            self._of_thread.visit = None


@final
class Bridged(Passes):
    """TransformerLens' bridge: every hook of it, eager attention.

    Threads take turns, since the bridge keeps some state of a pass in its modules.
    """

    def __init__(self, bridge: Any) -> None:
        self.bridge = bridge
        self._turn = threading.Lock()
        self._visit: Visit | None = None
        self._attached: set[str] = set()

    def attach(self, hook: str) -> bool:
        if hook in self._attached:
            return True

        def visited(acts: Tensor, hook: Any) -> Tensor:
            del hook
            return acts if self._visit is None else self._visit(name, acts)

        name = hook
        known = [other for other in self.bridge.hook_dict if other != hook]
        try:
            self.bridge.add_hook(hook, visited, is_permanent=True)
        except (KeyError, ValueError, AttributeError, RuntimeError) as error:
            text = f"target_model.hook is {hook!r}: the model has none such."
            raise ConfigError(text + did_you_mean(hook, known)) from error
        self._attached.add(hook)
        return True

    @contextmanager
    def _visiting(self, visit: Visit | None) -> Generator[None]:
        with self._turn:
            self._visit = visit
            try:
                yield
            finally:
                self._visit = None

    def logits(
        self, tokens: Int[Tensor, "rows seq"], visit: Visit | None
    ) -> Float[Tensor, "rows seq vocabulary"]:
        with self._visiting(visit), gemm.faster(tokens.device):
            return self.bridge(tokens, return_type="logits")
