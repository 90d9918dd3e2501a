"""The figures of the group `measure`: they join those that every run has."""

import logging
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from sae_sweeps.config.groups import NAMES
from sae_sweeps.config.signature import TARGET, build
from sae_sweeps.errors import ConfigError, did_you_mean
from sae_sweeps.interfaces import Architecture, Measurement
from sae_sweeps.measures import MEASURES
from sae_sweeps.record.result import Result
from sae_sweeps.stream.live import Stream

logger = logging.getLogger(__name__)

COLUMNS = (
    *("run", "label", "curve", "k", "d_sae", "seed", "tokens"),
    *("frontier", "standing", "frontier_gap", "frontier_margin", "frontier_seeds"),
    *("frontier_rival", "strict_frontier", "curve_frontier"),
    *NAMES,
)
"""Of `pareto.csv`, beside those of measures."""
PREFIXES = ("batch_", "train_", "evaluation_", "cost_")
"""Of its columns that hold other parts of `result.json`."""


def new_measurement(node: Mapping[str, Any]) -> Measurement:
    """Build a config's `measure`; raises ConfigError for a figure whose name cannot be its own."""
    measurement: Measurement = build(node)
    names = Counter(measure.name for measure in measurement.measures)
    shipped = {measure.name for measure in MEASURES}
    for name, times in names.items():
        if name in shipped:
            why = "a figure that every run has"
        elif name in COLUMNS or name.startswith(PREFIXES):
            why = "which is another column of pareto.csv"
        elif not name.isidentifier():
            why = "expected letters, digits and '_', as in my_figure"
        elif times > 1:
            why = "twice"
        else:
            continue
        raise ConfigError(f"measure: {node[TARGET]} declares {name!r}, {why}.")
    return measurement


@torch.no_grad()
def with_figures(
    result: Result, measurement: Measurement, sae: Architecture, stream: Stream
) -> Result:
    """Add the measurement's figures to a result, and what they are.

    Args:
        sae: for unscaled activations.

    Raises:
        ValueError: a figure that the measurement does not declare.
    """
    declared = [measure.name for measure in measurement.measures]
    found: dict[str, float] = {}
    if declared:
        acts = stream.unscaled(stream.held_out)
        figures = measurement.figures(sae.eval(), acts, stream.target)
        found = {name: float(figure) for name, figure in figures.items()}
    for name, figure in found.items():
        if name not in declared:
            text = f"{type(measurement).__name__} gives {name!r}, expected of"
            raise ValueError(f"{text} {', '.join(declared)}.{did_you_mean(name, declared)}")
        if not math.isfinite(figure):
            logger.warning("%s is %s: it is left out", name, figure)
    finite = {name: figure for name, figure in found.items() if math.isfinite(figure)}
    return replace(result, metrics=result.metrics | finite, measures=measurement.measures)
