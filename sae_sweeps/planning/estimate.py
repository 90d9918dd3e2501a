"""What work takes on a device: of what a plan's times and memory are made."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import TARGET
from sae_sweeps.config.source import own_static
from sae_sweeps.planning import memory, roofline
from sae_sweeps.planning.gpus import Gpu
from sae_sweeps.planning.told import told
from sae_sweeps.record.run import Run


class Estimate(Protocol):
    """Seconds of what runs are made of, one thing at a time, and their memory."""

    @property
    def basis(self) -> str:
        """Whence the times are, in words."""
        ...

    @property
    def device(self) -> str:
        """`GPU` or `CPU`."""
        ...

    @property
    def side_by_side(self) -> int:
        """Runs of a pack that train at the same time."""
        ...

    def memory_bytes(self, runs: Sequence[Run]) -> int | None:
        """Bytes of a pack; None where nobody knows its width yet."""
        ...

    def start_s(self, config: RunConfig) -> float:
        """Seconds until a process has imported and loaded what it needs."""
        ...

    def step_s(self, config: RunConfig, d_in: int) -> float:
        """Seconds of a training step."""
        ...

    def evaluation_s(self, config: RunConfig, d_in: int) -> float:
        """Seconds of measuring a finished SAE, the target model's passes aside."""
        ...

    def activation_s(self, config: RunConfig) -> float | None:
        """Seconds of a token's pass up to the hook; None where nobody knows the model's size."""
        ...

    def prediction_s(self, config: RunConfig) -> float | None:
        """Seconds of a token's pass to the end; None as above."""
        ...


@dataclass(frozen=True)
class Roofline:
    """Estimated from a GPU's rates."""

    gpu: Gpu
    device = "GPU"
    side_by_side = 1

    @property
    def basis(self) -> str:
        return f"estimated from the rates of the {self.gpu.title}"

    def memory_bytes(self, runs: Sequence[Run]) -> int | None:
        return memory.of_pack(runs)

    def start_s(self, config: RunConfig) -> float:
        return roofline.start_s(memory.weight_bytes(config))

    def step_s(self, config: RunConfig, d_in: int) -> float:
        return roofline.step_s(config, d_in, self.gpu)

    def evaluation_s(self, config: RunConfig, d_in: int) -> float:
        return roofline.evaluation_s(config, d_in, self.gpu)

    def activation_s(self, config: RunConfig) -> float | None:
        return self._pass_s(config, 0)

    def prediction_s(self, config: RunConfig) -> float | None:
        return self._pass_s(config, 1)

    def _pass_s(self, config: RunConfig, part: int) -> float | None:
        found = model_parameters(config)
        dtype = config.nodes["target_model"].get("dtype", "float32")
        return None if found is None else roofline.pass_s(found[part], dtype, self.gpu)


def model_parameters(config: RunConfig) -> tuple[int, int] | None:
    """Parameters that a token passes up to the hook, and to the end; None where nobody knows.

    A target model without `parameters` is no model: its activations cost next to nothing.
    """
    target = config.nodes["target_model"][TARGET]
    if own_static(target, "parameters") is None:
        return 0, 0
    return told(config, "target_model", "parameters")
