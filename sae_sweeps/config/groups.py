"""The groups of options, once: whoever goes through them goes through this table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """A folder of `conf/` whose options stand for one another, and the config's field for it."""

    name: str
    kind: str
    """The abstract class of its options."""
    home: str = "sae_sweeps.interfaces"
    """Where that class is."""
    usual: str | None = "none"
    """The option that goes without saying in labels and tags."""
    labelled: bool = False
    """Whether another option than the usual one stands in the method's label."""
    tagged: bool = True
    """Whether it is a tag of a run at the tracker."""
    streams: bool = False
    """Whether it rules activation batches."""
    trains: bool = True
    """Whether it can change a run's weights."""
    birth: str | None = None
    """The class that did its work before the group existed."""

    @property
    def base(self) -> str:
        """The abstract class with its module."""
        return f"{self.home}.{self.kind}"


GROUPS = (
    Group("architecture", "Architecture", usual=None),
    Group("allocator", "Allocator"),
    Group("aux_loss", "AuxLoss", labelled=True),
    Group("resampling", "Resampling", labelled=True),
    Group("fine_tune", "FineTune", labelled=True),
    Group(
        "optimizer",
        "Optimizer",
        usual="adam",
        labelled=True,
        birth="sae_sweeps.optimizer.adam.Adam",
    ),
    Group(
        "schedule",
        "Schedule",
        usual="linear",
        labelled=True,
        birth="sae_sweeps.schedule.linear.Linear",
    ),
    Group("target_model", "TargetModel", usual=None, streams=True),
    Group("data", "Data", tagged=False, streams=True),
    Group(
        "measure",
        "Measurement",
        tagged=False,
        trains=False,
        birth="sae_sweeps.measure.none.NoMeasurement",
    ),
    Group("tracking", "Tracking", home="sae_sweeps.tracking.interface", tagged=False, trains=False),
)
"""A new group is a row here, its folder in `conf/` and its abstract class in `interfaces.py`."""

NAMES = tuple(group.name for group in GROUPS)
GLOBAL = ("method", "sweep")
"""Folders whose options set others; they have no field of their own."""
