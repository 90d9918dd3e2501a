"""The figures of `engine_training` for people."""

from collections import defaultdict
from statistics import fmean
from typing import Any

from tests.benchmarks.engine_tables import grid, verdict

SMALL = [
    "`d_in` 384, 768 latents, `k` 32, 200 steps of 512 tokens; warm-up over the first 5 % of the",
    "steps and decay over the last 40 %, as by default.",
]


def quality(found: dict[str, list[dict[str, float]]]) -> list[str]:
    """A row per method and learning rate."""
    cells: list[list[str]] = []
    for method, runs in found.items():
        by_lr = defaultdict[float, list[dict[str, float]]](list)
        for run in runs:
            by_lr[run["lr"]].append(run)
        for lr, seeds in by_lr.items():
            differences = [run["sparse"] / run["dense"] - 1 for run in seeds]
            means = [fmean(run[engine] for run in seeds) for engine in ("dense", "sparse")]
            mean, largest = fmean(differences), max(differences, key=abs)
            cells.append(
                [
                    *(method, f"{lr:.0e}", f"{means[0]:.4f} / {means[1]:.4f}"),
                    *(f"{mean:+.2%}", f"{largest:+.2%}"),
                    verdict(100 * abs(mean), 0.5, at_least=False) + " (%)",
                ]
            )
    seeds = len({run["seed"] for runs in found.values() for run in runs})
    return [
        "## Quality: held-out FVU after equal tokens, `engine=dense` / `engine=sparse`",
        "",
        *SMALL,
        "Learning rates: a third of the default, the default and three times it; means over",
        f"{seeds} seeds, whose figures are in engine.json. With a seed, both engines start from",
        "the same weights and see the same batches. Auxiliary losses off. Largest: of a seed.",
        "",
        *grid(
            ["method", "learning rate", "mean FVU", "mean difference", "largest", "wanted"], cells
        ),
    ]


def reach(found: dict[str, dict[str, Any]]) -> list[str]:
    """A row per method and contender."""
    cells: list[list[str]] = []
    for method, race in found.items():
        own = race["taken"]["sparse"]["cpu_s"]
        for name, taken in race["taken"].items():
            there = "tokens" in taken
            cells.append(
                [
                    *(method, LABELS[name], f"{race['goal']:.4f}", f"{taken['fvu']:.4f}"),
                    f"{taken['tokens']:,.0f}" if there else "not reached",
                    f"{taken['cpu_s']:.1f}",
                    f"{taken['cpu_s'] / own:.2f}" if there else f"> {taken['cpu_s'] / own:.2f}",
                ]
            )
    race = next(iter(found.values()))
    return [
        "## Reach: CPU seconds until a fixed FVU",
        "",
        f"`d_in` 384, 3,072 latents, 2,048 tokens a batch, `k` 32, learning rate {race['lr']:g}",
        "(our default) throughout, auxiliary losses off. The FVU to reach is the mean training FVU",
        f"over the last tenth of {race['steps']} steps with `engine=dense`; it is reached once the",
        f"mean over {race['window']} steps is at most that. Contenders take turns, step by step,",
        "on the same batches; counted are training steps, without the figures. The dense reference",
        "starts from the same decoder bias; it neither clips nor projects gradients and draws its",
        "own weights, so that it differs from ours in tokens too.",
        "",
        *grid(
            ["method", "", "to reach", "FVU", "tokens", "CPU s", "× `engine=sparse`"],
            cells,
        ),
    ]


LABELS = {
    "dense": "`engine=dense`",
    "sparse": "**`engine=sparse`**",
    "reference": "dense reference",
}
BITWISE = {"again": True, "packed": True, "other_seed": False}
"""Whether weights should be those of the run alone."""


def bitwise(found: dict[str, dict[str, bool]]) -> list[str]:
    """A row per method."""
    cells = [
        [
            *(method, *("yes" if same[name] else "no" for name in BITWISE)),
            "yes" if same == BITWISE else "no",
        ]
        for method, same in found.items()
    ]
    return [
        "## Bitwise: are weights the same bytes as those of a run alone?",
        "",
        *SMALL,
        "`engine=auto`; auxiliary losses as each method has them. Packed: with the five others,",
        "side by side on as many cores as there are. Another seed shows that the comparison",
        "can fail.",
        "",
        *grid(["method", "run again", "packed", "another seed", "as wanted"], cells),
    ]
