"""Every figure there is, in one table: what it is, which way is better, where and how it is shown.

Whoever lists, draws or names figures goes through `MEASURES`. An option of the group `measure`
describes figures of its own alike; results keep these descriptions, so that reports need nothing
that a user brought.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class Panel:
    """How a measure is drawn over L0: in the picture, on the page, at the tracker."""

    ranked: bool = True
    """Whether a frontier makes sense: few dead latents are no achievement at low L0."""
    floor: float | None = None
    """What the axis always shows."""
    sane: tuple[float, float] = (-1e9, 1e9)
    """Values outside, of runs that diverged, may not squeeze the others."""
    logarithmic: bool = False
    """Whether ratios matter, not differences."""
    usual: bool = True
    """Whether a dashboard has it before any run has a result."""


@dataclass(frozen=True)
class Column:
    """How a measure is printed in the terminal's table; the page's table has it too."""

    heading: str = ""
    """Empty for the measure's title."""
    form: str = ".4f"
    detail: int = 0
    """Columns of much detail go first where the terminal is too narrow."""
    spread: bool = False
    """Whether the standard deviation over seeds stands beside it, a detail of 2."""
    note: str = ""
    """What the heading means, below the table."""

    def __post_init__(self) -> None:
        if re.search(r"\d{3}", self.form):  # a file of somebody else's may ask for a billion
            raise ValueError(f"a column's form is {self.form!r}, expected fewer digits.")
        format(0.0, self.form)  # else the first report would complain


@dataclass(frozen=True)
class Curve:
    """How a measure is drawn over the tokens of training."""

    logarithmic: bool = False
    mirrored: bool = True
    """Whether the tracker's dashboard has it, and not the page alone."""


@dataclass(frozen=True)
class Measure:
    """A figure by which runs are compared."""

    name: str
    """As `result.json`, `pareto.csv` and the tracker have it."""
    title: str
    unit: str = ""
    better: Literal["lower", "higher"] | None = None
    """None where neither is."""
    scale: float = 1.0
    """What the figure is multiplied by to be of the unit."""
    kind: Literal["final", "batch", "train", "seeds", "row"] = "final"
    """Where it is measured.

    final: on held-out tokens, each on its own. batch: on held-out tokens, with allocation over
    batches. train: in the last row of training. seeds: between runs that differ in seeds only.
    row: in every row of `metrics.jsonl`.
    """
    panel: Panel | None = None
    column: Column | None = None
    curve: Curve | None = None

    @property
    def full_title(self) -> str:
        """The title with the unit, if there is one."""
        return f"{self.title}, {self.unit}" if self.unit else self.title

    @property
    def ranked(self) -> bool:
        """Whether it has a frontier over L0."""
        return self.panel is not None and self.panel.ranked and self.better is not None


MEASURES = (
    Measure("l0", "L0", better="lower", column=Column(form=".2f")),
    Measure("l0_p5", "L0 of a token, 5th percentile"),
    Measure("l0_median", "L0 of a token, median"),
    Measure("l0_p95", "L0 of a token, 95th percentile"),
    Measure("l0_max", "L0 of a token, largest"),
    Measure(
        "fvu",
        "FVU",
        better="lower",
        panel=Panel(sane=(-1e9, 1.2), logarithmic=True),
        column=Column(spread=True),
    ),
    Measure("mse", "squared error per dimension", better="lower"),
    Measure("cosine", "cosine of activation and reconstruction", better="higher"),
    Measure(
        "ce_recovered",
        "CE recovered",
        better="higher",
        panel=Panel(sane=(0.0, 1e9)),
        column=Column(spread=True),
    ),
    Measure("ce_recovered_mean", "CE recovered, beside the mean", better="higher"),
    Measure("delta_ce", "ΔCE", "nats", "lower", column=Column("ΔCE", detail=2)),
    Measure("ce", "CE with the SAE", "nats", "lower"),
    Measure("kl", "KL from the clean model", "nats", "lower"),
    Measure("ce_clean", "CE of the clean model", "nats"),
    Measure("ce_zero", "CE with the activation at 0", "nats"),
    Measure("ce_mean", "CE with the activation at its mean", "nats"),
    Measure(
        "gamma",
        "gamma",
        column=Column(
            form=".3f",
            detail=3,
            note="of reconstructions, 1 / their best gain: below 1 they are too short",
        ),
    ),
    Measure("gamma_centred", "gamma of what parts from the mean"),
    Measure(
        "true_recovered_frac",
        "true features recovered",
        "%",
        "higher",
        scale=100.0,
        panel=Panel(usual=False),
        column=Column(
            "recovered %",
            ".1f",
            spread=True,
            note="true features whose latent, one for each, has a cosine above 0.9",
        ),
    ),
    Measure("true_matched_cos", "cosine of true features and latents, one to one", better="higher"),
    Measure("true_max_cos", "cosine of true features and their nearest latents", better="higher"),
    Measure("true_l0", "true features per token"),
    Measure(
        "dead_frac",
        "dead latents",
        "%",
        "lower",
        scale=100.0,
        panel=Panel(ranked=False, floor=0.0),
        column=Column("dead %", ".1f", spread=True),
    ),
    Measure(
        "train_dead_frac",
        "dead latents in training",
        "%",
        "lower",
        scale=100.0,
        kind="train",
        column=Column("train dead %", ".1f", detail=1),
    ),
    Measure(
        "underused_frac",
        "underused latents",
        "%",
        "lower",
        scale=100.0,
        column=Column(
            "underused %",
            ".1f",
            detail=3,
            note="latents below a tenth of the density that Zipf's law gives their rank",
        ),
    ),
    Measure("below_1e-4", "latents of a density below 1e-4", "%", scale=100.0),
    Measure("below_1e-5", "latents of a density below 1e-5", "%", scale=100.0),
    Measure("below_1e-6", "latents of a density below 1e-6", "%", scale=100.0),
    Measure(
        "seed_similarity",
        "seed similarity",
        better="higher",
        kind="seeds",
        column=Column(
            form=".3f",
            detail=1,
            note="mean cosine of latents between two seeds, assigned one to one",
        ),
    ),
    Measure("batch_l0", "batch L0", better="lower", kind="batch", column=Column("", ".2f", 4)),
    Measure("batch_fvu", "batch FVU", better="lower", kind="batch", column=Column(detail=4)),
    Measure("train/fvu", "FVU", better="lower", kind="row", curve=Curve(logarithmic=True)),
    Measure("train/l0", "L0", better="lower", kind="row", curve=Curve()),
    Measure("features/dead_frac", "dead fraction", better="lower", kind="row", curve=Curve()),
    Measure("train/loss", "loss", better="lower", kind="row", curve=Curve(mirrored=False)),
)
"""In the order in which they are shown."""

FINAL = tuple(measure.name for measure in MEASURES if measure.kind == "final")
"""What `result.json` may hold as `metrics`, by itself: cross-entropies where there is a model,
true figures where there is a known dictionary."""
CURVES = tuple((measure, measure.curve) for measure in MEASURES if measure.curve is not None)
"""What is drawn over training."""


DESCRIBED = ("title", "unit", "better", "scale", "panel", "column")
"""What a result keeps of a measure from outside."""


def known(foreign: Iterable[Measure]) -> list[Measure]:
    """Give the table's rows and then what results have beside them; a name of ours is ours."""
    found = {measure.name: measure for measure in MEASURES}
    for measure in foreign:
        found.setdefault(measure.name, measure)
    return list(found.values())


def describe(measure: Measure) -> dict[str, Any]:
    """Give a measure as plain data, for a result to keep under its name."""
    whole = asdict(measure)
    return {key: whole[key] for key in DESCRIBED}


def read(name: str, plain: Mapping[str, Any]) -> Measure:
    """Do the reverse of `describe`; what a later version says besides is passed over.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: a description that is none.
    """
    given = {key: plain[key] for key in DESCRIBED if key in plain}
    if given.get("panel") is not None:
        panel = _fields(Panel, given["panel"])
        low, high = panel["sane"]
        panel["sane"] = (low, high)
        given["panel"] = Panel(**panel)
    if given.get("column") is not None:
        given["column"] = Column(**_fields(Column, given["column"]))
    return Measure(name, **given)


def _fields(kind: type[Panel] | type[Column], plain: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: plain[field.name] for field in fields(kind) if field.name in plain}
