"""What whole runs of ours come to: python -m tests.benchmarks.engine_training PART CASE.

Prints JSON. `quality`: held-out FVU of the engine forced dense and sparse, learning rate swept;
`reach`: CPU seconds and tokens until a fixed FVU; `bitwise`: whether weights are the same bytes
whoever trains beside a run.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

from torch import Tensor

from sae_sweeps.record.result import Result
from sae_sweeps.record.run import Run
from sae_sweeps.training import trainer as training
from sae_sweeps.training.trainer import Trainer
from tests.benchmarks.engine_ours import METHODS, reference
from tests.benchmarks.engine_profile import Clock, answer, member_of
from tests.benchmarks.engine_worker import repeated, saved
from tests.support.small import small_run, train

ENGINES = ("dense", "sparse")
SEEDS = (0, 1, 2)
LR_FACTORS = (1 / 3, 1.0, 3.0)
SMALL_RUNS = (
    *("d_sae=768", "k=32", "stream.batch_tokens=512", "stream.chunk_tokens=8192"),
    *("stream.calibration_tokens=8192", "training.tokens=102400", "stream.repeat=true"),
    *("evaluation.tokens=4096", "evaluation.ce_tokens=0"),
)
REACH_STEPS = 70
"""Steps of the dense run, over whose last tenth the FVU to reach is the mean."""
WINDOW = 5
"""Steps whose mean has to be there."""
Curve = list[tuple[float, float]]
"""by step, training FVU and CPU seconds"""


def run_of(case: dict[str, Any], folder: str, method: str, *words: str) -> Run:
    """A run of 200 steps on saved activations, in a folder of the case's."""
    data = "target_model=activations", f"target_model.path={case['data']}"
    return small_run(Path(case["home"]) / folder, *SMALL_RUNS, *METHODS[method], *data, *words)


def trained(runs: list[Run]) -> list[Result]:
    """Results of runs trained as one pack; raises what a run failed with."""
    results: list[Result] = []
    for outcome in train(*runs):
        if isinstance(outcome, Exception):
            raise outcome
        results.append(outcome)
    return results


def quality(case: dict[str, Any]) -> dict[str, list[dict[str, float]]]:
    """By method, for each learning rate and seed, held-out FVU of either engine."""
    return {method: _quality(case, method) for method in METHODS}


def _quality(case: dict[str, Any], method: str) -> list[dict[str, float]]:
    default = run_of(case, "default", method).config.nodes["optimizer"]["lr"]
    rows: list[dict[str, float]] = [
        {"lr_factor": factor, "lr": factor * default, "seed": seed}
        for factor in LR_FACTORS
        for seed in SEEDS
    ]
    for engine in ENGINES:
        runs = [
            run_of(
                *(case, engine, method, "aux_loss=none", f"engine={engine}"),
                *(f"seed={row['seed']}", f"optimizer.lr={row['lr']!r}"),
            )
            for row in rows
        ]
        for row, result in zip(rows, trained(runs), strict=True):
            row[engine] = result.metrics["fvu"]
    return rows


def reach(case: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By method, the FVU to reach, and what each took to reach it."""
    return {method: _reach(case, method) for method in case["methods"]}


def _reach(case: dict[str, Any], method: str) -> dict[str, Any]:
    lr = run_of(case, "default", method).config.nodes["optimizer"]["lr"]
    case = case | {"lr": lr, "method": method}
    members = {
        engine: member_of(
            case | {"engine": engine, "home": str(Path(case["home"]) / engine)}, method
        )
        for engine in ENGINES
    }
    acts = saved(case)
    mean = members["dense"].trainer.sae.b_dec.detach().clone()
    batches = (repeated(acts, case["batch"]) for _ in range(3))
    racing = {
        **{name: ours(member.trainer, next(batches)) for name, member in members.items()},
        "reference": peer(case, next(batches), mean),
    }
    found = raced(racing, case["batch"])
    for member in members.values():
        member.tracked.finish(None)
        member.close_files()
    return {"lr": lr, **found}


def raced(racing: dict[str, Iterator[tuple[float, float]]], batch: int) -> dict[str, Any]:
    """Train all, step by step in turns, until each is where the dense run was at its end.

    One that takes twice the dense run's steps is given up: it has no `tokens`.
    """
    curves: dict[str, Curve] = {name: [] for name in racing}
    for _ in range(REACH_STEPS):
        for name, steps in racing.items():
            curves[name].append(next(steps))
    goal = fmean(fvu for fvu, _ in curves["dense"][-(REACH_STEPS // 10) :])
    for _ in range(REACH_STEPS):
        for name, steps in racing.items():
            if reached(curves[name], goal) is None:
                curves[name].append(next(steps))
    rows: dict[str, dict[str, float]] = {}
    for name, curve in curves.items():
        count = reached(curve, goal)
        taken = curve[:count]
        rows[name] = {
            "fvu": fmean(fvu for fvu, _ in taken[-WINDOW:]),
            "cpu_s": sum(seconds for _, seconds in taken),
        }
        if count is not None:
            rows[name]["tokens"] = count * batch
    return {"goal": goal, "steps": REACH_STEPS, "window": WINDOW, "taken": rows}


def reached(curve: Curve, goal: float) -> int | None:
    """Steps until the running mean of the FVU is at most `goal`."""
    fvus = [fvu for fvu, _ in curve]
    for count in range(WINDOW, len(fvus) + 1):
        if fmean(fvus[count - WINDOW : count]) <= goal:
            return count
    return None


def ours(trainer: Trainer, batches: Iterator[Tensor]) -> Iterator[tuple[float, float]]:
    """FVU of a batch, and CPU seconds of training on it without those of the figures."""
    for x in batches:
        clock = Clock()
        uncounted = clock.counted("figures", training.figures)
        with patch.object(training, "figures", uncounted), clock.counting("step"):
            found = trainer.step(x, wanted=True)
        yield found["train/fvu"].item(), clock.spent["step"]


def peer(
    case: dict[str, Any], batches: Iterator[Tensor], mean: Tensor
) -> Iterator[tuple[float, float]]:
    """As `ours`, for the dense reference with its decoder bias set to `mean`."""
    seen: list[Tensor] = []
    noted = (seen.append(x) or x for x in batches)
    steps = reference(case, noted, mean)
    while True:
        began = time.process_time()
        error = next(steps)
        seconds = time.process_time() - began
        x = seen.pop()
        yield (error * len(x) / (x - x.mean(0)).pow(2).sum()).item(), seconds


def bitwise(case: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """By method, whether a run's weights are those that it has alone: their files' bytes.

    With another seed they must not be, or the comparison would not notice anything.
    """
    packed = weights([run_of(case, "packed", method) for method in METHODS])
    found: dict[str, dict[str, bool]] = {}
    for method, beside_others in zip(METHODS, packed, strict=True):
        (alone,) = weights([run_of(case, "alone", method)])
        (again,) = weights([run_of(case, "again", method)])
        (other,) = weights([run_of(case, "other", method, "seed=1")])
        found[method] = {
            "again": again == alone,
            "packed": beside_others == alone,
            "other_seed": other == alone,
        }
    return found


def weights(runs: list[Run]) -> list[bytes]:
    """The files of weights of runs trained as one pack."""
    trained(runs)
    return [(run.folder / "checkpoint" / "weights.safetensors").read_bytes() for run in runs]


PARTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    function.__name__: function for function in (quality, reach, bitwise)
}


if __name__ == "__main__":
    answer(PARTS)
