"""linear: the learning rate rises linearly, stays, and falls linearly to 0."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, final

from annotated_types import Ge

from sae_sweeps.interfaces import Schedule


@final
class Linear(Schedule):
    """min(1, tokens / warmup_tokens, tokens left / decay_tokens).

    Of a batch, its last token counts on the way up and its first one on the way down, so that no
    step has a learning rate of 0.
    """

    def __init__(
        self,
        tokens: int,
        *,
        warmup_tokens: Annotated[int, Ge(0)],
        decay_tokens: Annotated[int, Ge(0)],
    ) -> None:
        self.tokens, self.warmup_tokens, self.decay_tokens = tokens, warmup_tokens, decay_tokens

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        warmup, decay = (config["schedule"][f"{name}_tokens"] for name in ("warmup", "decay"))
        tokens = config["training"]["tokens"]
        if warmup + decay > tokens:
            yield (
                f"schedule.warmup_tokens is {warmup} and schedule.decay_tokens is {decay}: "
                f"together expected at most training.tokens, which is {tokens}."
            )

    def factor(self, tokens: int, batch: int) -> float:
        up = (tokens + batch) / max(self.warmup_tokens, 1)
        down = (self.tokens - tokens) / max(self.decay_tokens, 1)
        return min(1.0, up, down)
