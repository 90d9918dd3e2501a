"""No further figures."""

from collections.abc import Mapping
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sae_sweeps.interfaces import Architecture, Measurement, TargetModel
from sae_sweeps.measures import Measure


@final
class NoMeasurement(Measurement):
    """What every run is measured by is enough."""

    measures: ClassVar[tuple[Measure, ...]] = ()

    def figures(
        self, sae: Architecture, acts: Float[Tensor, "tokens d_in"], target: TargetModel
    ) -> Mapping[str, float]:
        return {}
