"""What a sweep is looked at for, over L0."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Panel:
    """One measure over L0."""

    measure: str
    title: str
    better: str
    scale: float = 1.0
    ranked: bool = True
    """Whether a frontier makes sense: few dead latents are no achievement at low L0."""
    floor: float | None = None
    """What the axis always shows."""
    sane: tuple[float, float] = (-1e9, 1e9)
    """Values outside, of runs that diverged, may not squeeze the others."""
    logarithmic: bool = False
    """Whether ratios matter, not differences."""


PANELS = (
    Panel("fvu", "FVU", "lower", sane=(-1e9, 1.2), logarithmic=True),
    Panel("ce_recovered", "CE recovered", "higher", sane=(0.0, 1e9)),
    Panel("true_recovered_frac", "true features recovered, %", "higher", scale=100.0),
    Panel("dead_frac", "dead latents, %", "lower", scale=100.0, ranked=False, floor=0.0),
)
