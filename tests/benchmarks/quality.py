"""How good our SAEs are, beside peers' own trainers: python -m tests.benchmarks.quality.

Each training is a process with one thread, `--jobs` of them at a time. Its row is kept at once in
results/quality.json, so that the same command goes on where it was interrupted;
results/quality.md is the table of what there is. After our defaults or code changed,
`--only ours --anew` trains ours once more and keeps the peers' rows. `--report` trains nothing.

To see what options would do, before they are defaults:

    python -m tests.benchmarks.quality --try NAME optimizer.lr=4e-3 training.gradient_clip_norm=0.01
        [--methods token mutual] [--k 32] [--seeds 0 1] [--sets embedded] [--jobs 2] [--anew]

trains ours with these words of the command line, and by default where results lack that row, and
prints both at equal L0, beside the best peer's where all of that one's rows are there. Rows of
trials lie in the folder `--home`; `--anew` forgets them, as is needed when code has changed. Rows
by default that results have are taken as they are, whatever code they were made with.
"""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.benchmarks import engine_environments as environments
from tests.benchmarks import quality_report, quality_sets, quality_try
from tests.benchmarks.quality_cases import KS, METHODS, OURS, PEERS, ours
from tests.benchmarks.quality_rows import Bench, Rows, Train, say
from tests.benchmarks.quality_study import Failed, Study

RESULTS = Path(__file__).parent / "results"


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=[OURS, "peers"], help="leave out the others")
    parser.add_argument("--anew", action="store_true", help="forget rows of ours or trials first")
    parser.add_argument("--report", action="store_true", help="only write the table")
    parser.add_argument(
        "--sets", nargs="+", choices=quality_sets.SETS, default=[*quality_sets.SETS]
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--try", nargs="+", metavar=("NAME", "OPTION=VALUE"), dest="trial")
    parser.add_argument("--k", nargs="+", type=int, default=[*KS], help="of --try")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="of --try")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--home", type=Path, default=environments.default_folder() / "quality")
    parser.add_argument("--peers", type=Path, help="an interpreter that has the peers already")
    parser.add_argument("--environments", type=Path, default=environments.default_folder())
    return parser.parse_args(arguments)


def studies(given: argparse.Namespace, train: Train) -> Iterator[Study]:
    """What is asked for, in the order in which it is begun."""
    contenders = {OURS: ours(), "peers": list(PEERS)}
    for place in given.sets:
        for side in [given.only] if given.only else ["peers", OURS]:
            for contender in contenders[side]:
                if contender.method in given.methods:
                    yield Study(place, contender, train)


def carried_out(study: Study) -> None:
    """Train all that a study asks for; what fails leaves a row that says why."""
    them = study.contender
    for default in [True, False] if them.name == OURS else [False]:
        try:
            study.levels(None if default else study.best_rate())
        except Failed as error:
            say(f"{study.set}/{them.name}/{them.method}: {error}")


def tried(given: argparse.Namespace, rows: Rows, bench: Bench) -> None:
    """Train and print a trial."""
    name, *words = given.trial
    trial = quality_try.Trial(name, tuple(words), given.sets, given.methods, given.k, given.seeds)
    if given.anew:
        bench.rows.forget(bool)
    quality_try.trained(trial, bench.train, given.jobs)
    peers = {
        (place, method, k): fvu
        for place in given.sets
        for method in given.methods
        for k, fvu in quality_report.best_peer(rows, place, method).items()
    }
    say("\n".join(quality_try.table(trial, bench.train, peers)))


def interpreter(given: argparse.Namespace) -> Path:
    """One with the peers, or ours where none of them is trained."""
    if given.only == OURS or given.trial:
        return Path(sys.executable)
    if given.peers:
        return given.peers
    python, trouble = environments.made(given.environments)
    if trouble:
        raise SystemExit(f"the peers' environment: {trouble}")
    return python


def main() -> None:
    """Train what lacks, and write the table."""
    given = parsed()
    rows = Rows(RESULTS / "quality.json")
    if not given.report:
        python = interpreter(given)
        sets = {name: quality_sets.made(given.home, name) for name in given.sets}
        places = {name: made.facts(given.home) for name, made in sets.items()}
        own = Rows(given.home / "tried.json", behind=rows) if given.trial else rows
        bench = Bench(own, given.home, python, places)
        if given.trial:
            tried(given, rows, bench)
            return
        if given.anew:
            unwanted = {f"{s}/{OURS}/{m}" for s in given.sets for m in given.methods}
            rows.forget(lambda key: key.partition(" ")[0] in unwanted)
        with ThreadPoolExecutor(given.jobs) as pool:
            list(pool.map(carried_out, studies(given, bench.train)))
    (RESULTS / "quality.md").write_text(quality_report.table(rows))


if __name__ == "__main__":
    main()
