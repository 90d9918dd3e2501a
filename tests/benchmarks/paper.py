"""Runs both paper studies as a user does; keeps their table, figure and figures under results/.

python tests/benchmarks/paper.py            trains 2 x 162 runs in a temporary folder
python tests/benchmarks/paper.py OUTPUTS    takes OUTPUTS/paper and OUTPUTS/paper_synthetic
"""

import csv
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise, product
from pathlib import Path
from statistics import fmean, stdev

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results"
SWEEPS = {"paper": ("Embedded model", 16.0), "paper_synthetic": ("Synthetic data", 8.0)}
"""Title, and the L0 at which methods are compared"""
ALLOCATORS = {
    "token_choice": "token",
    "mutual_choice": "mutual",
    "feature_choice": "feature, Zipf, after mutual",
    "feature_choice_scratch": "feature, Zipf, from scratch",
    "feature_choice_uniform": "feature, uniform, after mutual",
    "feature_choice_uniform_scratch": "feature, uniform, from scratch",
}
AUX_LOSSES = ("none", "aux_k", "aux_zipf")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
LINES = {"none": ":", "aux_k": "--", "aux_zipf": "-"}

Row = dict[str, str]


@dataclass(frozen=True)
class Measure:
    """A column of `pareto.csv`, its heading and its form in the table."""

    column: str
    heading: str
    form: str = ".1f"
    scale: float = 100.0


MEASURES = (
    Measure("fvu", "FVU", ".4f", 1.0),
    Measure("ce_recovered", "CE recovered", ".4f", 1.0),
    Measure("dead_frac", "dead %"),
    Measure("underused_frac", "underused %"),
    Measure("l0_p5", "L0 p5", ".1f", 1.0),
    Measure("l0_p95", "L0 p95", ".1f", 1.0),
    Measure("true_recovered_frac", "recovered %"),
    Measure("true_matched_cos", "matched cosine", ".3f", 1.0),
    Measure("seed_similarity", "seed similarity", ".3f", 1.0),
)
DRAWN = ("fvu", "dead_frac", "underused_frac", "ce_recovered", "true_recovered_frac")


class Study:
    """The runs of one sweep."""

    def __init__(self, folder: Path) -> None:
        self.title, self.l0 = SWEEPS[folder.name]
        with (folder / "pareto.csv").open() as file:
            self.rows: list[Row] = list(csv.DictReader(file))
        self.seeds = sorted({row["seed"] for row in self.rows})

    def has(self, measure: Measure) -> bool:
        """Whether every run has it."""
        return all(row.get(measure.column) for row in self.rows)

    def cell(self, allocator: str, aux_loss: str, seed: str) -> list[Row]:
        """One method's runs of one seed, by growing L0."""
        wanted = (allocator, aux_loss, seed)
        found = [r for r in self.rows if (r["allocator"], r["aux_loss"], r["seed"]) == wanted]
        return sorted(found, key=lambda row: float(row["l0"]))

    def at_l0(self, allocator: str, aux_loss: str, column: str) -> list[float]:
        """The measure at the matched L0, of every seed; linear in log L0 between two runs."""
        return [
            _interpolated([(float(r["l0"]), float(r[column])) for r in runs], self.l0)
            for runs in (self.cell(allocator, aux_loss, seed) for seed in self.seeds)
        ]


def _interpolated(curve: list[tuple[float, float]], l0: float) -> float:
    for (left, low), (right, high) in pairwise(curve):
        if left <= l0 <= right:
            return low + (high - low) * math.log(l0 / left) / math.log(right / left)
    raise ValueError(f"the curve {curve} does not reach L0 {l0}")


def _spread(values: Iterable[float], measure: Measure) -> str:
    scaled = [value * measure.scale for value in values]
    return f"{fmean(scaled):{measure.form}} ± {stdev(scaled):{measure.form}}"


def table(study: Study) -> list[str]:
    """Every method at the matched L0, mean and standard deviation over seeds."""
    measures = [measure for measure in MEASURES if study.has(measure)]
    lines = [
        " | ".join(["| allocator | aux_loss", *(m.heading for m in measures)]) + " |",
        "|---|---|" + "---|" * len(measures),
    ]
    for allocator, aux_loss in product(ALLOCATORS, AUX_LOSSES):
        cells = [_spread(study.at_l0(allocator, aux_loss, m.column), m) for m in measures]
        lines.append(f"| {' | '.join([ALLOCATORS[allocator], aux_loss, *cells])} |")
    return lines


def differences(
    study: Study, column: str, scale: float, form: str, methods: list[tuple[str, str, str]]
) -> list[str]:
    """Paired by seed: mean and standard deviation of one method less another, and the signs."""
    lines: list[str] = []
    for text, one, other in methods:
        ours, theirs = (study.at_l0(*_groups(name), column) for name in (one, other))
        gaps = [(a - b) * scale for a, b in zip(ours, theirs, strict=True)]
        lower = sum(gap < 0 for gap in gaps)
        line = f"{fmean(gaps):+{form}} ± {stdev(gaps):{form}}"
        lines.append(f"| {text} | {line} | {lower} of {len(gaps)} |")
    return lines


def _groups(method: str) -> tuple[str, str]:
    allocator, _, aux_loss = method.partition("+")
    return allocator, aux_loss


PAIRS = [
    ("mutual less token, with aux_k", "mutual_choice+aux_k", "token_choice+aux_k"),
    ("feature (Zipf) less token, with aux_k", "feature_choice+aux_k", "token_choice+aux_k"),
    (
        "feature: Zipf less uniform, with aux_k",
        "feature_choice+aux_k",
        "feature_choice_uniform+aux_k",
    ),
    (
        "feature: after mutual less from scratch, with aux_k",
        "feature_choice+aux_k",
        "feature_choice_scratch+aux_k",
    ),
    ("token: aux_k less none", "token_choice+aux_k", "token_choice+none"),
    ("token: aux_zipf less aux_k", "token_choice+aux_zipf", "token_choice+aux_k"),
    ("mutual: aux_k less none", "mutual_choice+aux_k", "mutual_choice+none"),
    ("mutual: aux_zipf less aux_k", "mutual_choice+aux_zipf", "mutual_choice+aux_k"),
    ("feature (Zipf): aux_zipf less aux_k", "feature_choice+aux_zipf", "feature_choice+aux_k"),
]


def page(studies: dict[str, Study]) -> str:
    """The tables as Markdown."""
    lines: list[str] = []
    for study in studies.values():
        lines += [f"## {study.title}: at L0 = {study.l0:g}", "", *table(study), ""]
        for measure in MEASURES[:4]:
            if study.has(measure):
                lines += [f"| {measure.heading}, paired by seed | difference | lower in |"]
                lines += ["|---|---|---|"]
                lines += differences(study, measure.column, measure.scale, measure.form, PAIRS)
                lines += [""]
    return "\n".join(lines)


def draw(studies: dict[str, Study], path: Path) -> None:
    """L0 against what matters: a row per study, a line per method, means over seeds."""
    columns = {
        n: [m for m in MEASURES if m.column in DRAWN and s.has(m)] for n, s in studies.items()
    }
    figure = Figure(figsize=(14, 7), dpi=130, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(studies), max(map(len, columns.values())), squeeze=False)
    for row, (name, study) in zip(axes, studies.items(), strict=True):
        for ax, measure in zip(row, columns[name], strict=False):
            for colour, allocator in zip(COLOURS, ALLOCATORS, strict=True):
                for aux_loss, style in LINES.items():
                    xs, ys = _curve(study, allocator, aux_loss, measure, float)
                    ax.plot(xs, ys, style, color=colour, marker="o", markersize=3, linewidth=1.3)
            ax.set_xscale("log", base=2)
            ax.set(xlabel="L0", title=f"{measure.heading} ({study.title.lower()})")
            ax.grid(alpha=0.3)
    blank = axes[0][0]
    names = zip(COLOURS, ALLOCATORS.values(), strict=True)
    handles = [blank.plot([], [], color=colour, label=name)[0] for colour, name in names]
    for aux_loss, style in LINES.items():
        handles += blank.plot([], [], style, color="#222222", label=aux_loss)
    figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path)


def _curve(
    study: Study, allocator: str, aux_loss: str, measure: Measure, number: Callable[[str], float]
) -> tuple[list[float], list[float]]:
    runs = [study.cell(allocator, aux_loss, seed) for seed in study.seeds]
    groups = list(zip(*runs, strict=True))
    xs = [fmean(number(row["l0"]) for row in group) for group in groups]
    ys = [fmean(number(row[measure.column]) for row in group) for group in groups]
    return xs, [y * measure.scale for y in ys]


def main() -> None:
    """Train or take, tabulate, draw."""
    with tempfile.TemporaryDirectory() as place:
        outputs = Path(sys.argv[1] if len(sys.argv) > 1 else f"{place}/outputs")
        if len(sys.argv) == 1:
            for name in SWEEPS:
                command = [sys.executable, "-m", "sae_sweeps", f"+sweep={name}"]
                subprocess.run([*command, "tracking.mode=offline"], cwd=place, check=True)
        studies = {name: Study(outputs / name) for name in SWEEPS if (outputs / name).exists()}
        (RESULTS / "paper_tables.md").write_text(page(studies))
        draw(studies, RESULTS / "paper.png")
        for name in studies:
            text = (outputs / name / "pareto.csv").read_text()
            (RESULTS / f"{name}.csv").write_text(text)


if __name__ == "__main__":
    main()
