"""Sweeps with made-up results, and what a report of them says."""

import copy
import csv
import io
import json
import math
import random
import shutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.numpy import save_file

from sae_sweeps.config.options import RunConfig
from sae_sweeps.pareto.points import RunPoint, Setting
from sae_sweeps.pareto.report import report
from sae_sweeps.record.result import Result
from sae_sweeps.record.run import label as name_of
from sae_sweeps.tracking.interface import Tracking
from sae_sweeps.tracking.off import Off
from tests.support.small import small_run

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")

MOST_SEEDS = 4
METHODS = {
    "relu": ("relu", "none", "none", 1.5),
    "gated": ("gated", "none", "none", 1.15),
    "jumprelu": ("jumprelu", "none", "none", 1.05),
    "topk": ("relu", "token_choice", "aux_k", 1.0),
    "mutual": ("relu", "mutual_choice", "aux_k", 0.93),
    "feature": ("relu", "feature_choice", "aux_k", 0.97),
}


@cache
def _tree() -> dict[str, Any]:
    words = ("d_sae=1024", "stream.seed=7", "training.tokens=524288", "optimizer.lr=0.001")
    return small_run(Path(), *words, "schedule.warmup_tokens=26214").config.tree


def base() -> dict[str, Any]:
    """A config to be changed."""
    return copy.deepcopy(_tree())


def result(
    method: str, k: int, seed: int, options: Mapping[str, Any], measured: bool
) -> dict[str, Any]:
    """Make up a `result.json` such as a run would leave."""
    *chosen, level = METHODS[method]
    choices: dict[str, str] = dict(
        zip(("architecture", "allocator", "aux_loss"), chosen, strict=True)
    )
    rng = random.Random(f"{method} {k} {seed} {options}")
    l0 = k * rng.uniform(0.9, 1.1)
    fvu = level * 0.5 * l0**-0.55 * rng.uniform(0.97, 1.03)
    config: dict[str, Any] = base() | {
        "name": "anything",
        "seed": seed,
        "k": float(k),
        "d_sae": 1024,
        "device": "auto",
        "architecture": {"_target_": f"sae_sweeps.{choices['architecture']}", "target_l0": k},
        "allocator": {"_target_": f"sae_sweeps.{choices['allocator']}", "k": k},
        "target_model": {"_target_": "sae_sweeps.X", "model": "gelu-1l", "hook": "blocks.0.mlp"},
        "tracking": {"mode": rng.choice(["auto", "offline"])},
    }
    for path, value in options.items():
        *above, last = path.split(".")
        node = config
        for key in above:
            node = node.setdefault(key, {})
        node[last] = value
    metrics = {"l0": l0, "fvu": fvu, "mse": fvu * 3.1, "cosine": 1 - fvu / 2}
    metrics |= {"dead_frac": max(0.0, rng.uniform(-0.05, 0.1)), "below_1e-4": 0.1, "l0_max": 4 * k}
    batch = {key: value * 1.01 for key, value in metrics.items()}
    if measured:
        metrics |= {"ce": 3.1 + fvu, "delta_ce": fvu, "ce_recovered": 1 - fvu / 4.1}
    return {
        "version": 1,
        "label": name_of(choices),
        "choices": {**choices, "data": "embedded", "tracking": "wandb"},
        "config": config,
        "k": float(k),
        "d_sae": config["d_sae"],
        "seed": seed,
        "tokens": 524288,
        "metrics": metrics,
        "batch": batch,
        "train": {"dead_frac": 0.125, "dead_window_tokens": 26214, "l0": l0, "fvu": fvu},
        "evaluation": {"tokens": 65536, "ce_tokens": 16384, "metrics_version": 1},
        "cost": {"seconds": 12.5, "tokens_per_s": 41943.04, "threads": 2, "device": "cpu"},
    }


def write_sweep(
    folder: Path,
    methods: Sequence[str] = tuple(METHODS),
    ks: Sequence[int] = (4, 8, 16, 32),
    seeds: Sequence[int] = (0,),
    options: Sequence[Mapping[str, Any]] = ({},),
    measured: bool = True,
) -> dict[str, dict[str, Any]]:
    """Write a sweep's runs, and give their results by run."""
    results: dict[str, dict[str, Any]] = {}
    for method in methods:
        for k in ks:
            for seed in seeds:
                for extra in options:
                    run = f"{method}-k{k}-s{seed}-{len(results):08x}"
                    content = result(method, k, seed, extra, measured)
                    results[run] = {**content, "run": run, "sweep": folder.name}
                    (folder / "runs" / run).mkdir(parents=True)
                    (folder / "runs" / run / "result.json").write_text(json.dumps(results[run]))
    return results


def write_failure(folder: Path, run: str, error: str) -> None:
    (folder / "runs" / run).mkdir(parents=True)
    (folder / "runs" / run / "failed.json").write_text(json.dumps({"error": error}))


def write_decoder(folder: Path, run: str, decoder: np.ndarray) -> Path:
    path = folder / "runs" / run / "checkpoint" / "weights.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file({"W_dec": decoder.astype(np.float32), "b_dec": decoder[0]}, path)
    return path


def printed(folder: Path, width: int = 200, tracking: Tracking | None = None) -> str:
    """Report, and give what stood in the terminal."""
    text = io.StringIO()
    report(folder, tracking or Off(), Console(file=text, width=width))
    return text.getvalue()


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "pareto.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def dress(folder: Path) -> None:
    """What real runs leave besides: distributions, training curves, a manifest."""
    rng = random.Random(0)
    for path in sorted((folder / "runs").glob("*/result.json")):
        result = json.loads(path.read_text())
        edges = [-6 + 0.25 * step for step in range(25)]
        counts = [rng.randrange(100) for _ in edges[1:]]
        result["density_histogram"] = {"log10_edges": edges, "counts": counts}
        tokens = [rng.randrange(50) for _ in range(12)]
        result["l0_histogram"] = {"edges": list(range(0, 26, 2)), "counts": tokens}
        path.write_text(json.dumps(result))
        rows = [
            {"tokens": 1000 * i, "train/fvu": 1 / i, "train/l0": 8.0, "train/loss": math.nan}
            for i in range(1, 200)
        ]
        lines = [json.dumps(row) for row in rows] + ['{"tokens": 20']
        (path.parent / "metrics.jsonl").write_text("\n".join(lines))


Curves = Mapping[str, Sequence[tuple[float, Sequence[float]]]]
"""By curve its settings, as an L0 and each seed's FVU."""


def settings_of(curves: Curves, source: int = 0) -> list[Setting]:
    """Make settings by what matters for the frontier; those of one source can be compared."""
    tree = base()
    tree["target_model"]["seed"] = source
    configs = [RunConfig.of(tree | {"seed": seed}) for seed in range(MOST_SEEDS)]
    return [
        Setting(
            [
                RunPoint(
                    run=f"{curve}-{place}-s{seed}",
                    curve=curve,
                    setting=f"{curve} {place}",
                    metrics={"l0": l0, "fvu": fvu},
                    result=Result(
                        label=curve, choices={}, config=configs[seed], tokens=1, metrics={}
                    ),
                )
                for seed, fvu in enumerate(fvus)
            ]
        )
        for curve, places in curves.items()
        for place, (l0, fvus) in enumerate(places)
    ]
