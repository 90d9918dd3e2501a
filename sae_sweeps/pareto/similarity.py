"""How alike the decoders are of runs that differ in seeds only."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from statistics import fmean

import numpy as np
from safetensors import SafetensorError, safe_open

from sae_sweeps.pareto.points import Results, RunPoint, settings
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.system import files
from sae_sweeps.training.matching import matched_cosines

MEASURE = "seed_similarity"
MOST_LATENTS = 12_288
"""Wider SAEs are not compared: a pair of this width takes half a minute and 1.4 GB."""
SAME = ("target_model", "data")
"""What two runs must share, seeds included, to have the same things to find."""


def with_similarity(results: Results, folder: Path) -> Results:
    """Add `seed_similarity` to the runs that have replicates: the mean over a run's pairs.

    A pair's similarity is the mean cosine of the decoders' rows, optimally assigned one to one,
    over all latents (arXiv 2501.16615). It is kept in the folder for later reports.
    Runs without readable weights are left out.
    """
    place = SweepFolder(folder)
    path = place.similarities
    kept = _read(path)
    found: dict[str, list[float]] = {}
    for pair in _pairs(results):
        weights = [place.run(point.run).weights for point in pair]
        try:
            key = " ".join(_identity(file) for file in weights)
            if key not in kept:
                kept[key] = float(matched_cosines(*(_decoder(file) for file in weights)).mean())
                files.write_json(path, kept)
        except (OSError, ValueError, SafetensorError):
            continue
        for point in pair:
            found.setdefault(point.run, []).append(kept[key])
    return replace(results, points=[_with(point, found.get(point.run)) for point in results.points])


def too_wide(results: Results) -> int:
    """How many settings with replicates are of more than `MOST_LATENTS` latents."""
    found = [setting.points for setting in settings(results.points)]
    return sum(len(points) > 1 and points[0].config.d_sae > MOST_LATENTS for points in found)


def _pairs(results: Results) -> Iterator[tuple[RunPoint, RunPoint]]:
    for setting in settings(results.points):
        for one, other in combinations(setting.points, 2):
            same = all(one.config.nodes[k] == other.config.nodes[k] for k in SAME)
            if same and one.config.d_sae <= MOST_LATENTS:
                yield one, other


def _with(point: RunPoint, similarities: list[float] | None) -> RunPoint:
    if similarities is None:
        return point
    return replace(point, metrics=point.metrics | {MEASURE: fmean(similarities)})


def _read(path: Path) -> dict[str, float]:
    """Similarities by the identities of two weight files; none where the file is torn."""
    try:
        kept = json.loads(path.read_bytes())
        return {key: float(value) for key, value in kept.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _identity(weights: Path) -> str:
    """A file's run, size and time of change."""
    stat = weights.stat()
    return f"{weights.parents[1].name}:{stat.st_size}:{stat.st_mtime_ns}"


def _decoder(weights: Path) -> np.ndarray:
    with safe_open(weights, framework="np") as file:
        return file.get_tensor("W_dec")
