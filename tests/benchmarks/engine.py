"""How fast the engine is, beside peers' own training loops: python -m tests.benchmarks.engine.

Every contender is a process; they take turns, and ratios are medians over rounds of what they cost
in the same round: CPU seconds, one thread. Peers are installed once, see --environments. Kept under
results/. One part alone: --only steps.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import engine_environments as environments
from tests.benchmarks.engine_report import table
from tests.benchmarks.engine_rounds import (
    ENVIRONMENT,
    ROOT,
    Contender,
    Failed,
    Worker,
    interleaved,
    paired,
    typical,
)

RESULTS = Path(__file__).parent / "results"
STEPS, LAYERS = 2, 6
BASE: dict[str, Any] = {
    "d_in": 384,
    "d_sae": 12288,
    "k": 32,
    "lr": 3e-4,
    "batch": 2048,
    "forward": False,
    "chunk_batches": STEPS,
    "tracking": "wandb",
    "checkpoint_minutes": 5,
}
SWEEP = BASE | {"d_in": 768, "d_sae": 6144, "method": "token", "chunk_batches": 1, "layers": LAYERS}
TWELVE: dict[str, Any] = {"methods": ["token", "mutual", "feature"], "ks": [8, 16, 32, 64]}
REACH = {"methods": ["token", "mutual"], "d_sae": 3072, "tracking": "off"}
TRAINING = "engine_training"
ALLOCATED = ["token", "mutual", "feature"]
PEERS = list(environments.PEERS)
STEP_CASES: list[tuple[str, int, list[str], dict[str, float]]] = [
    (
        *("token", 12288, ["ours", "dense", *PEERS]),
        {"saelens": 9, "dictionary_learning": 8, "sparsify": 2.5},
    ),
    (
        *("token", 3072, ["ours", "dense", *PEERS]),
        {"saelens": 6, "dictionary_learning": 5, "sparsify": 2.3},
    ),
    ("mutual", 12288, ["ours", "dense", "saelens", "dictionary_learning"], {"saelens": 12}),
    ("feature", 12288, ["ours"], {}),
    ("relu", 3072, ["ours", "dense"], {}),
    ("gated", 3072, ["ours"], {}),
    ("jumprelu", 3072, ["ours"], {}),
]
"""method, latents, who takes turns, and how many times faster than a peer we want to be"""
SWEEP_PAIRS = [
    ("12 runs, float32 forward", "SAELens, forward and step", 1.0),
    ("12 runs, bfloat16 forward", "SAELens, forward and step", None),
    ("12 runs, saved activations", "SAELens, step", 1.3),
    ("12 runs, saved activations", "dictionary_learning, step", 1.3),
]
"""of which the first's cost over the second's is told, and what it may be"""
TOKENS = {"narrow": (98304, 384), "wide": (24576, 768), "few": (24576, 384)}


@dataclass(frozen=True)
class Place:
    """Where a benchmark finds and puts things."""

    home: Path
    peers: Path
    """an interpreter"""
    rounds: int

    def data(self, name: str) -> str:
        """A file of activations."""
        path = self.home / f"{name}.npy"
        if not path.exists():
            import numpy as np

            from tests.benchmarks.engine_worker import synthesise

            np.save(path, synthesise(*TOKENS[name]).numpy())
        return str(path)

    def working(self) -> Path:
        """A new folder."""
        return Path(tempfile.mkdtemp(dir=self.home))

    def contender(self, name: str, case: dict[str, Any]) -> Contender:
        """A peer, or ours."""
        return Contender(name, case, self.peers if name in PEERS else None)


def steps(place: Place) -> list[dict[str, Any]]:
    """Milliseconds of a step, and ratios to ours."""
    rows: list[dict[str, Any]] = []
    for method, d_sae, names, targets in STEP_CASES:
        case = BASE | {"method": method, "d_sae": d_sae, "data": place.data("narrow")}
        contenders = [place.contender(name, case) for name in names]
        spent, failed = interleaved(contenders, STEPS, place.rounds, place.working())
        for name in names:
            row: dict[str, Any] = {"method": method, "d_sae": d_sae, "name": name}
            rows.append(row)
            if name in failed:
                row["missing"] = failed[name]
                continue
            row["cpu_ms"] = 1e3 * typical(spent, name) / STEPS
            row["wall_ms"] = 1e3 * typical(spent, name, "wall_s") / STEPS
            row["tokens_per_cpu_s"] = BASE["batch"] / row["cpu_ms"] * 1e3
            row["over_ours"] = paired(spent, name, "ours") if "ours" in spent else None
            row["over_ours_wall"] = (
                paired(spent, name, "ours", "wall_s") if "ours" in spent else None
            )
            row["wanted"] = targets.get(name)
    return rows


def sweep(place: Place) -> dict[str, Any]:
    """What twelve runs cost beside one of a peer's, per 2,048 tokens."""
    from tests.benchmarks.harvest import saved_model

    model = str(saved_model(place.home))
    case = SWEEP | {"data": place.data("wide"), "model": model, "dtype": "float32"}
    forward, packed = {"forward": True}, {**TWELVE, "worker": "ours"}

    def peer(name: str) -> dict[str, Any]:
        return case | {"worker": name}

    contenders = [
        Contender("SAELens, forward and step", peer("saelens") | forward, place.peers),
        Contender("12 runs, float32 forward", case | packed | forward, calls=12),
        Contender(
            "12 runs, bfloat16 forward", case | packed | forward | {"dtype": "bfloat16"}, calls=12
        ),
        Contender("SAELens, step", peer("saelens"), place.peers),
        Contender("dictionary_learning, step", peer("dictionary_learning"), place.peers),
        Contender("12 runs, saved activations", case | packed, calls=12),
    ]
    spent, failed = interleaved(contenders, 1, place.rounds, place.working())
    costs = [
        {"name": name, "cpu_ms": 1e3 * typical(spent, name)}
        | {"wall_ms": 1e3 * typical(spent, name, "wall_s")}
        for name in spent
    ]
    ratios = [
        {"one": one, "other": other, "ratio": paired(spent, one, other), "wanted": wanted}
        for one, other, wanted in SWEEP_PAIRS
        if one in spent and other in spent
    ]
    return {"costs": costs, "ratios": ratios, "missing": failed}


def memory(place: Place) -> list[dict[str, Any]]:
    """Peak of each contender's memory above what it had before it built its SAE, over 3 steps."""
    rows: list[dict[str, Any]] = []
    for method in ("token", "mutual"):
        case = BASE | {"method": method, "data": place.data("few"), "tracking": "off"}
        names = ["ours", *(name for name in PEERS if method == "token" or name != "sparsify")]
        for name in names:
            row: dict[str, Any] = {"method": method, "name": name}
            rows.append(row)
            try:
                with Worker(place.contender(name, case), place.working()) as worker:
                    row["peak_mb"] = worker.steps(3)["peak_mb"]
            except Failed as error:
                row["missing"] = str(error)
    return rows


def profiled(part: str, place: Place, program: str = "engine_profile", **case: Any) -> Any:
    """What `engine_profile`, or another program, finds, in a process of its own."""
    given = json.dumps({**BASE, "home": str(place.working()), "data": place.data("narrow"), **case})
    done = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{program}", part, given],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


PARTS: dict[str, Callable[[Place], Any]] = {
    "steps": steps,
    "memory": memory,
    "sweep": sweep,
    "breakdown": lambda place: profiled("breakdown", place, methods=ALLOCATED, tracking="off"),
    "overhead": lambda place: profiled("overhead", place, methods=ALLOCATED, chunk_batches=8),
    "ops": lambda place: profiled("ops", place, methods=ALLOCATED, tracking="off"),
    "quality": lambda place: profiled("quality", place, TRAINING),
    "reach": lambda place: profiled("reach", place, TRAINING, **REACH),
    "bitwise": lambda place: profiled("bitwise", place, TRAINING),
}


def main() -> None:
    """Measure, and keep the figures; those of parts left out stay as they were."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; may be repeated")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", type=Path, help="an interpreter that has the peers already")
    parser.add_argument("--environments", type=Path, default=environments.default_folder())
    given = parser.parse_args()
    trouble = None
    if given.peers is None:
        given.peers, trouble = environments.made(given.environments)
    path = RESULTS / "engine.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Place(Path(temporary), given.peers, given.rounds)
        found["machine"] = profiled("machine", place)
        found["peers"] = {"versions": environments.versions(given.peers), "trouble": trouble}
        found.setdefault("measured", {})
        for part in given.only or PARTS:
            began, load = time.monotonic(), os.getloadavg()[0]
            found[part] = PARTS[part](place)
            found["measured"][part] = {
                "rounds": given.rounds,
                "load_before": load,
                "load_after": os.getloadavg()[0],
                "seconds": time.monotonic() - began,
            }
            path.write_text(json.dumps(found, indent=1) + "\n")
            (RESULTS / "engine.md").write_text(table(found))


if __name__ == "__main__":
    main()
