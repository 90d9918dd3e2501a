"""Some of the latents, of which the host knows in time how many they are."""

from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_sweeps.engine.host import HostNumber, places


class Concerned:
    """The latents that a loss concerns, as far as is known before the forward pass."""

    def __init__(
        self, among: Bool[Tensor, " d_sae"], weight: Float[Tensor, " d_sae"] | None = None
    ) -> None:
        self.among = among
        """Which they are."""
        self.weight = weight
        """How much each of them counts; None: all the same."""
        self._count = HostNumber(among.count_nonzero())

    def __len__(self) -> int:
        return self._count.get()

    @property
    def latents(self) -> Int[Tensor, " n"]:
        """Their numbers, ascending."""
        return places(self.among, self._count)
