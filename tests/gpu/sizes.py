"""The methods and sizes whose steps are counted on fake tensors, and timed on real ones."""

from typing import NamedTuple

ALLOCATED = ("topk", "mutual_choice", "feature_choice")
"""Methods with an allocator, and the number of active latents known before."""
PENALISED = ("relu", "jumprelu", "gated")
"""Methods with a penalty."""


class Size(NamedTuple):
    """Of an SAE, and of its batches."""

    d_in: int
    d_sae: int
    batch: int = 4096
    k: int = 32

    @property
    def parameters(self) -> int:
        """Of encoder and decoder."""
        return 2 * self.d_in * self.d_sae


SIZES = (Size(768, 24_576), Size(2_304, 65_536), Size(4_096, 131_072))
"""Of GPT-2, a model of 2 and one of 8 billion parameters, at 16 to 32 times their width."""
NAMES = ("small", "middle", "large")
"""What tables call them."""
LAYER, CONTEXT = 6, 128
"""Of GPT-2 small, whose residual stream after it a sweep is on; and tokens of a context."""
TOY = (Size(16, 64, 64, 4), Size(24, 96, 64, 4), Size(32, 128, 64, 4))
"""What a rehearsal has in their place."""
MOST_MS = {24_576: 2.5, 65_536: 11.0, 131_072: 33.0}
"""A step with an allocator, and aux_k of which nothing is dead, by the number of latents; by the
accounting of `counting`."""
