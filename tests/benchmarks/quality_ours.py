"""One run of ours for `quality`: python -m tests.benchmarks.quality_ours CASE ANSWER."""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import quality_sets
from tests.benchmarks.quality_cases import METHODS
from tests.support.small import run_of, train


def answer(case: dict[str, Any], home: Path, folder: Path) -> dict[str, float]:
    """What the run's result.json says of it."""
    wanted = quality_sets.made(home, case["set"])
    words = [*quality_sets.training_words(wanted, home), f"method={METHODS[case['method']]}"]
    words += [f"k={case['dial']:g}", f"seed={case['seed']}"]
    if case["lr"] is not None:
        words.append(f"optimizer.lr={case['lr']!r}")
    (result,) = train(run_of(folder, *words, *case["words"]))
    if isinstance(result, Exception):
        raise result
    figures = {name: result.metrics[name] for name in ("l0", "fvu", "dead_frac")}
    return figures | {"cpu_s": result.cost["cpu_seconds"]}


def main() -> None:
    """Train, and leave the figures where they are looked for."""
    case = json.loads(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        found = answer(case, Path(case["home"]), Path(folder))
    Path(sys.argv[2]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
