"""What runs leave on disk, as types: results, failures, rows; `folder` has their files."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from sae_sweeps.config.history import upgrade
from sae_sweeps.config.options import RunConfig
from sae_sweeps.errors import visible
from sae_sweeps.measures import Measure, describe, read

Figures = dict[str, float | int]
"""What was measured, by name."""
METRICS_VERSION = 3
"""Raised whenever a figure of `metrics.py` changes; runs measured before are measured anew.

A figure that comes raises nothing: runs measured before lack it, and are shown without.
"""


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run. What earlier versions did not tell is empty."""

    run: str = ""
    sweep: str = ""
    label: str
    """The method, as `token_choice + aux_k`."""
    choices: dict[str, str]
    """The option file chosen per group."""
    config: RunConfig
    tokens: int
    """Trained on, the last phase included."""
    metrics: Figures
    """Batch-free inference on held-out tokens: the Pareto point."""
    batch: Figures = field(default_factory=dict[str, float | int])
    """The same with allocation over batches, as in training."""
    evaluation: dict[str, int] = field(default_factory=dict[str, int])
    """What was measured on: `tokens`, `ce_tokens`, and by which `metrics_version`."""
    density_histogram: dict[str, list[float]] | None = None
    """Latents by log10 firing density: `log10_edges`, `counts`."""
    l0_histogram: dict[str, list[int]] | None = None
    """Tokens by their active latents: `edges`, `counts`."""
    fvu_by_l0_decile: list[dict[str, float]] | None = None
    train: Figures = field(default_factory=dict[str, float | int])
    """Of the last batch of training."""
    cost: dict[str, Any] = field(default_factory=dict[str, Any])
    """`seconds`, `cpu_seconds`, `tokens_per_s`, and on what the run was computed."""
    measures: tuple[Measure, ...] = ()
    """What figures from outside are, and how they are shown."""

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> "Result":
        """Read plain data, whose config may be an earlier version's; raises ValueError."""
        try:
            known: dict[str, Any] = {k.name: found[k.name] for k in fields(cls) if k.name in found}
            known["config"] = RunConfig.of(upgrade(found["config"]))
            _require_numbers(found)
            known["label"] = visible(str(found["label"]))
            choices = found["choices"].items()
            known["choices"] = {visible(group): visible(str(option)) for group, option in choices}
            told = found.get("measures", {}).items()
            known["measures"] = tuple(read(name, plain) for name, plain in told)
            return cls(**known)
        except KeyError as error:
            raise ValueError(f"it lacks {error}") from None
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from None

    def as_json(self) -> dict[str, Any]:
        """Give all of it as plain data, with the options that readers ask for most."""
        tree = self.config.tree
        found = {key.name: getattr(self, key.name) for key in fields(self)} | {"config": tree}
        del found["measures"]
        if self.measures:
            found["measures"] = {measure.name: describe(measure) for measure in self.measures}
        head = ("run", "sweep", "label", "choices", "config")
        dial = {key: tree[key] for key in ("k", "d_sae", "seed")}
        return {key: found[key] for key in head} | dial | found

    @property
    def scalars(self) -> Figures:
        """All that was measured, in one: `l0`, `batch_l0`, `train_dead_frac`, ..."""
        parts = {"": self.metrics, "batch_": self.batch, "train_": self.train}
        return {start + key: value for start, part in parts.items() for key, value in part.items()}


def _require_numbers(found: Mapping[str, Any]) -> None:
    """Refuse, by ValueError, figures that are none: a file may say anything."""
    times = {key: found.get("cost", {}).get(key) for key in ("seconds", "cpu_seconds")}
    parts = [found.get(part, {}) for part in ("metrics", "batch", "train", "evaluation")]
    for name, value in [item for part in (*parts, times) for item in part.items()]:
        if value is not None and not isinstance(value, int | float):
            raise ValueError(f"its {name} is {value!r}, expected a number")
    if not isinstance(found["tokens"], int | float):
        raise ValueError(f"its tokens are {found['tokens']!r}, expected a number")


@dataclass(frozen=True)
class Failure:
    """Why a run has no result."""

    error: str
    tokens: int | None = None
    """Trained on before, where that is known."""

    def as_json(self) -> dict[str, Any]:
        """Give what is known."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Row:
    """One line of a run's metrics."""

    tokens: int
    """Trained on so far."""
    figures: Figures
    """`train/fvu`, `features/dead_frac`, ... of the last batch."""

    @classmethod
    def of(cls, line: str) -> "Row":
        """Read a line; raises ValueError for one that a crash tore."""
        found = json.loads(line)
        tokens = found.pop("tokens", None) if isinstance(found, dict) else None
        if isinstance(tokens, bool) or not isinstance(tokens, int | float):
            raise ValueError("it is no row of metrics")
        if not math.isfinite(tokens):
            raise ValueError(f"its tokens are {tokens}")
        return cls(int(tokens), found)

    @property
    def line(self) -> str:
        """As it is written, one row a line."""
        return json.dumps({"tokens": self.tokens, **self.figures})
