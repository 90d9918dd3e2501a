"""The rows of `quality` for people."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from tests.benchmarks.engine_tables import grid, verdict
from tests.benchmarks.quality_cases import (
    DEAD,
    KS,
    METHODS,
    OURS,
    PEERS,
    SEEDS,
    WANTED,
    Contender,
    ours,
)
from tests.benchmarks.quality_rows import Missing, Rows
from tests.benchmarks.quality_sets import SETS
from tests.benchmarks.quality_study import Failed, Level, Study

HEAD = f"""# Quality: FVU at equal L0, beside peers' own trainers

`python -m tests.benchmarks.quality` trained each contender on the same two sets of activations, one
epoch each (`quality_sets.py` tells what they are), and measured all with the same code on the same
32,768 held-out tokens, without a batch (`quality_measure.py`). Peers are as their own defaults and
recipes have them, see `quality_peers.py`.

- **FVU at L0 {", ".join(map(str, KS))}**: sum |x - recon|² / sum |x - mean|², mean of {len(SEEDS)}
  seeds ± their standard deviation. Where a contender's L0 is not what is asked for, a power law
  between trainings on both sides of it, each within 15 %, or the slope of its own curve from one
  within 2 %. ~ marks what is continued from further away: it is compared with nobody.
- **learning rate**: of the lowest FVU at L0 32 with one seed, on a grid of factor 2 that was
  continued until the best was not at its edge or the last step was worth less than 0.3 %; the same
  rule for ours. *default*: ours as it comes, the row that is compared below.
- **dead**: latents that fire on none of the held-out tokens.
- **CPU s**: of one training, one thread. **L0**: of the trainings nearest to those asked for.
- **best peer**: of the lowest FVU at that k. Wanted is an FVU of at most 0.97 of its (1.0 for
  ReLU), no more dead latents than it or {DEAD:.1%}, and less CPU time than every peer's.
  No peer has feature choice: it is shown beside the peers of mutual choice, without verdicts.
"""


@dataclass(frozen=True)
class Outcome:
    """What rows tell of a contender on a set."""

    contender: Contender
    rate: float | None
    levels: dict[int, list[Level]]
    trouble: str = ""

    @property
    def name(self) -> str:
        """As tables have it."""
        if self.contender.name != OURS:
            return self.contender.name
        return "**ours**, default" if self.rate is None else "ours, best rate"

    def mean(self, figure: str, k: int) -> float:
        """Over seeds."""
        return fmean(level.row[figure] for level in self.levels[k])

    def there(self, k: int) -> bool:
        """Whether the FVU at L0 k can be compared."""
        return k in self.levels and all(level.there for level in self.levels[k])

    def told(self, k: int) -> str:
        """The FVU at L0 k and its spread."""
        fvus = [level.fvu for level in self.levels[k]]
        return f"{'' if self.there(k) else '~'}{fmean(fvus):.4f} ± {stdev(fvus):.4f}"

    def fvu(self, k: int) -> float:
        """At L0 k, over seeds."""
        return fmean(level.fvu for level in self.levels[k])


def outcomes(rows: Rows, place: str, method: str) -> Iterator[Outcome]:
    """Of peers, then of ours by default, then of ours at its best rate."""
    for contender in (*PEERS, *ours()):
        if contender.method != method:
            continue
        if contender.name == OURS:
            yield _outcome(Study(place, contender, rows.row), default=True)
        yield _outcome(Study(place, contender, rows.row), default=False)


def _outcome(study: Study, default: bool) -> Outcome:
    rate = None
    try:
        rate = None if default else study.best_rate()
        return Outcome(study.contender, rate, study.levels(rate))
    except Missing:
        trouble = "not measured yet"
    except Failed as error:
        trouble = f"failed: {error}"
    return Outcome(study.contender, rate if default else rate or study.contender.lr, {}, trouble)


def best_peer(rows: Rows, place: str, method: str) -> dict[int, float]:
    """By k, the lowest FVU of a peer that is measured."""
    found = list(outcomes(rows, place, method))
    peers = {k: _peers(found, k) for k in KS}
    return {k: min(peer.fvu(k) for peer in several) for k, several in peers.items() if several}


def _peers(found: Sequence[Outcome], k: int) -> list[Outcome]:
    return [one for one in found if one.contender.name != OURS and one.there(k)]


def table(rows: Rows) -> str:
    """All of it."""
    lines = [HEAD]
    for place, facts in SETS.items():
        sizes = f"{facts.d_in} dimensions, {facts.d_sae:,} latents, {facts.tokens:,} tokens"
        lines += [f"## {place}: {sizes} in batches of {facts.batch:,}", ""]
        by_method = {method: list(outcomes(rows, place, method)) for method in METHODS}
        verdicts = [cells for method in WANTED for cells in judged(method, by_method[method])]
        head = ["method", "k", "best peer", "FVU over its", "wanted", "at our best rate"]
        lines += [
            *grid([*head, "dead %, ours / its", "wanted", "CPU s over least", "wanted"], verdicts),
            "",
        ]
        for method, found in by_method.items():
            lines += [f"### {place}, {method}", "", *contenders(found), ""]
    return "\n".join(lines)


def contenders(found: Sequence[Outcome]) -> list[str]:
    """A row per contender."""
    cells: list[list[str]] = []
    for one in found:
        rate = "default" if one.rate is None else f"{one.rate:.2g}"
        if one.trouble:
            cells.append([one.name, one.trouble, *[""] * (len(KS) + 3)])
            continue
        cells.append(
            [
                *(one.name, rate),
                *(one.told(k) for k in KS),
                " / ".join(f"{100 * one.mean('dead_frac', k):.1f}" for k in KS),
                " / ".join(f"{one.mean('l0', k):.1f}" for k in KS),
                f"{fmean(one.mean('cpu_s', k) for k in KS):.0f}",
            ]
        )
    head = ["contender", "learning rate", *(f"FVU at L0 {k}" for k in KS)]
    return grid([*head, "dead %", "L0", "CPU s"], cells)


def judged(method: str, found: Sequence[Outcome]) -> Iterator[list[str]]:
    """A row per k: ours by default against the best peer, and what is wanted of it."""
    default, best = [one for one in found if one.contender.name == OURS]
    for k in KS:
        peers = _peers(found, k)
        if not peers or not default.there(k):
            continue
        peer = min(peers, key=lambda one: one.fvu(k))
        ratio = default.fvu(k) / peer.fvu(k)
        dead, its = default.mean("dead_frac", k), peer.mean("dead_frac", k)
        seconds = default.mean("cpu_s", k) / min(one.mean("cpu_s", k) for one in peers)
        yield [
            *(method, f"{k}", peer.name),
            *(f"{ratio:.3f}", verdict(ratio, WANTED[method], at_least=False)),
            f"{best.fvu(k) / peer.fvu(k):.3f}" if best.there(k) else "",
            f"{100 * dead:.1f} / {100 * its:.1f}",
            verdict(100 * dead, round(100 * max(its, DEAD), 2), at_least=False),
            *(f"{seconds:.2f}", verdict(seconds, 1.0, at_least=False)),
        ]
