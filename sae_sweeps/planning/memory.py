"""How much memory runs take: arithmetic, without torch or a device.

`tests/gpu` counts what a run takes on fake tensors, for every method.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sae_sweeps.config.options import RunConfig
from sae_sweeps.planning import costs
from sae_sweeps.planning.told import told
from sae_sweeps.record.identity import stream_identity
from sae_sweeps.record.run import Run

FILLED = 0.85
"""Share of the memory that packs are planned to fill: it is never in one piece."""
CONTEXT = 600 * 10**6
"""Bytes of a process that uses the device at all (estimated)."""
CHUNKS = 3
"""Chunks of a stream at a time: one that is trained on, the next, and what it is made of."""
MEASURED = 1.6
"""Matrices of an evaluation, counted for token choice; of others there is room for more."""


@dataclass(frozen=True)
class Memory:
    """Bytes of a run."""

    held: int
    """From its first step to its end: weights, Adam's moments, weights rounded to bfloat16."""
    step: int
    """At the peak of a step beyond that; runs of a pack take theirs one after the other."""
    evaluation: int
    """Likewise when the finished SAE is measured: a copy of it, and matrices in float32."""

    @property
    def peak(self) -> int:
        """What is beyond `held` at most."""
        return max(self.step, self.evaluation)


def of_run(config: RunConfig, d_in: int, device: str = "cuda") -> Memory:
    """Bytes of a run whose latents read and write activations of width `d_in`."""
    parameters = 2 * d_in * config.d_sae
    activations = 4 * config.stream.batch_tokens
    matrix, cost = activations * config.d_sae, costs.of_step(config, device)
    exact = ("float32", "auto") if device == "cpu" else ("float32",)
    rounded = config.training.precision not in exact
    held = 12 * parameters + (parameters if cost.listed else 2 * parameters) * rounded
    most = cost.matrices * matrix
    measured = int(4 * parameters + MEASURED * matrix)
    if cost.listed:  # the peak comes with the selection, or when gradients are projected
        unit_norm = config.nodes["architecture"].get("unit_norm", True)
        projecting = (0.5 if rounded else 1.0) * matrix + (6 if unit_norm else 4) * parameters
        return Memory(held, int(max(most, projecting) + 2 * activations * d_in), measured)
    return Memory(held, int(most + 3 * parameters + 2 * activations * d_in), measured)


def of_pack(
    runs: Sequence[Run], device: str = "cuda", process: int = CONTEXT, side_by_side: int = 1
) -> int | None:
    """Bytes of a pack, the target model included; None where no width is known before it is here.

    Args:
        process: bytes of a process that has nothing of the pack.
        side_by_side: runs that train at the same time.
    """
    first = runs[0].config
    streams: dict[str, int] = {}
    own: list[Memory] = []
    for run in runs:
        width = width_of(run.config)
        if width is None:
            return None
        streams[stream_identity(run.config)] = width
        own.append(of_run(run.config, width, device))
    peaks = sorted((memory.peak for memory in own), reverse=True)[:side_by_side]
    tokens = CHUNKS * first.stream.chunk_tokens + first.evaluation.tokens
    shared = sum(4 * tokens * width for width in streams.values())
    shared += sum(model_bytes(first))
    return process + sum(memory.held for memory in own) + sum(peaks) + shared


def fitting(room: int | None) -> Callable[[Sequence[Run]], bool]:
    """Whether a pack fits into a device's memory of so many bytes; yes where that is not known."""

    def fits(runs: Sequence[Run]) -> bool:
        needed = of_pack(runs) if room is not None else None
        return room is None or needed is None or needed <= FILLED * room

    return fits


def width_of(config: RunConfig) -> int | None:
    """Width of a run's activations, if its target model tells before it is loaded."""
    return told(config, "target_model", "width")


def weight_bytes(config: RunConfig) -> int:
    """Bytes of a target model's weights; 0 where it has none."""
    return model_bytes(config)[0]


def model_bytes(config: RunConfig) -> tuple[int, int]:
    """Bytes of a target model's weights, and what it takes beside them."""
    return told(config, "target_model", "model_bytes") or (0, 0)
