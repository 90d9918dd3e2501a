"""Neuron resampling: dead latents start anew at inputs that were reconstructed badly.

From Towards Monosemanticity (Bricken et al., 2023); the re-warm-up is arXiv 2404.16014's.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, final

import numpy as np
import torch
from annotated_types import Ge, Gt, Lt
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweeps.interfaces import Architecture, Progress, Resampling, Step
from sae_sweeps.marks import AtMost

LOWEST_LR = 0.1
"""Share of the learning rate at which the re-warm-up begins."""


@final
class NeuronResampling(Resampling):
    """At `times` multiples of `every_tokens`, replaces latents silent for `window_tokens`.

    Inputs x are drawn from the last `sample_tokens` tokens, each once at most, with probability
    proportional to the square of ||x - recon||^2. A drawn input gives one dead latent its decoder
    row, the unit vector of x - b_dec, and the same direction as encoder column, of `encoder_share`
    times the mean length of the living latents' columns; its biases become 0. Where rows have no
    unit norm, it takes the living ones' mean. Dead latents beyond the number of inputs stay dead.

    Our design: x - b_dec in place of x, since that is what latents read and write; errors from the
    steps before, in place of a pass with the newest weights; and the draw by keys Exp(1) / loss^2,
    of which the smallest d_sae are kept, so that memory does not grow with `sample_tokens`.
    """

    silent: Int[Tensor, " d_sae"]
    keys: Float[Tensor, " d_sae"]
    inputs: Float[Tensor, "d_sae d_in"]
    replaced_at: Int[Tensor, ""]

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        *,
        every_tokens: Annotated[int, Ge(1)],
        times: Annotated[int, Ge(1)],
        window_tokens: Annotated[int, Ge(1), AtMost(".every_tokens")],
        sample_tokens: Annotated[int, Ge(1), AtMost(".every_tokens")],
        encoder_share: Annotated[float, Gt(0)],
        rewarm_tokens: Annotated[int, Ge(0), AtMost(".every_tokens")],
        seed: Annotated[int, Ge(0), Lt(2**63)],
    ) -> None:
        super().__init__()
        self.every_tokens, self.times = every_tokens, times
        self.window_tokens, self.sample_tokens = window_tokens, sample_tokens
        self.encoder_share, self.rewarm_tokens, self.seed = encoder_share, rewarm_tokens, seed
        self.register_buffer("silent", torch.zeros(d_sae, dtype=torch.int64))
        self.register_buffer("keys", torch.full((d_sae,), torch.inf))
        self.register_buffer("inputs", torch.zeros(d_sae, d_in))
        self.register_buffer("replaced_at", torch.tensor(-rewarm_tokens))

    @staticmethod
    def rules(config: Mapping[str, Any]) -> Iterator[str]:
        """Fresh latents need a penalty that silences them again, and time before the decay."""
        node, tokens = config["resampling"], config["training"]["tokens"]
        if "k" in config["allocator"] or "l1_coef" not in config["architecture"]:
            yield (
                f"resampling.encoder_share is {node['encoder_share']:g}: resampling needs an L1 "
                "penalty, so allocator=none and an architecture with l1_coef (as method=relu has, "
                "or gated). Else expected resampling=none."
            )
        last = node["every_tokens"] * node["times"]
        decay = config["schedule"].get("decay_tokens")
        end = tokens - decay if isinstance(decay, int | float) else tokens
        if last > end:
            yield (
                f"resampling.times is {node['times']}: the last would come after {last} tokens, "
                f"expected at most {end}, where the learning rate's decay begins."
            )

    @torch.no_grad()
    def forward(
        self, sae: Architecture, step: Step, progress: Progress
    ) -> Int[Tensor, " n"] | None:
        batch = len(step.x)
        past = (progress.tokens - batch) // self.every_tokens
        if past >= self.times:
            return None
        fired = step.acts.tokens_per_latent > 0
        self.silent.copy_(torch.where(fired, 0, self.silent + batch))
        left = self.every_tokens * (past + 1) - progress.tokens
        if left < self.sample_tokens:
            self._draw(step, progress.tokens)
        return None if left > 0 else self._replace(sae, progress.tokens)

    def _draw(self, step: Step, tokens: int) -> None:
        """Keep the inputs of the d_sae smallest keys, smallest first."""
        state = np.random.SeedSequence([self.seed, tokens]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        noise = torch.empty(len(step.x)).exponential_(generator=generator)
        loss = (step.x - step.recon).pow(2).sum(1)
        # As logarithms, since the square of a small loss is 0 in float32.
        keys = torch.cat([self.keys, noise.to(loss.device).log() - 2 * loss.log()])
        smallest = keys.topk(len(self.keys), largest=False)
        self.keys.copy_(smallest.values)
        self.inputs.copy_(torch.cat([self.inputs, step.x])[smallest.indices])

    def _replace(self, sae: Architecture, tokens: int) -> Int[Tensor, " n"] | None:
        dead = self.silent >= self.window_tokens
        latents = dead.nonzero().squeeze(1)[: int((self.keys < torch.inf).sum())]
        if len(latents):
            directions = self.inputs[: len(latents)] - sae.b_dec
            directions = directions / torch.linalg.vector_norm(directions, dim=1, keepdim=True)
            self._write(sae, latents, directions, ~dead)
            self.silent[latents] = 0
            self.replaced_at.fill_(tokens)
        self.keys.fill_(torch.inf)
        return latents if len(latents) else None

    def _write(
        self,
        sae: Architecture,
        latents: Int[Tensor, " n"],
        directions: Float[Tensor, "n d_in"],
        living: Bool[Tensor, " d_sae"],
    ) -> None:
        living = living if living.any() else ~living  # else there is no length to go by
        column = torch.linalg.vector_norm(sae.W_enc[:, living], dim=0).mean()
        row = torch.linalg.vector_norm(sae.W_dec[living], dim=1).mean()
        for parameter in sae.parameters():
            if parameter.shape == living.shape and parameter is not sae.b_dec:
                parameter[latents] = 0
        sae.W_enc[:, latents] = self.encoder_share * column * directions.T
        sae.W_dec[latents] = row * directions

    def lr_factor(self, tokens: int) -> float:
        # The buffer is read only where it must be: on an accelerator that means waiting.
        if self.rewarm_tokens == 0 or tokens < self.every_tokens:
            return 1.0
        done = (tokens - self.replaced_at.item()) / self.rewarm_tokens
        return LOWEST_LR + (1 - LOWEST_LR) * (1 - math.cos(math.pi * min(done, 1))) / 2
