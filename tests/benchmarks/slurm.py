"""The main job on a real SLURM, and what a run costs beside its training; kept under results/.

python -m tests.benchmarks.slurm
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.slurm.conftest import Slurm, new_cluster, start, until
from tests.slurm.sweeps import jobs, left_behind, status

RESULTS = Path(__file__).parent / "results"
PARETO = ("+sweep=pareto", "tracking.mode=offline")
JOB = ("hydra/launcher=slurm", "hydra.launcher.memory=3G", "hydra.launcher.gpus=2")
STOCK = (
    *("hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1"),
    "hydra.launcher.cpus_per_task=2",
)
TRIVIAL = (
    *("-m", "tracking=off", "device=cpu", "d_sae=64", "k=4", "seed=range(32)"),
    *("training.tokens=2048", "stream.batch_tokens=1024", "stream.chunk_tokens=2048"),
    *("stream.calibration_tokens=1024", "evaluation.tokens=1024", "evaluation.ce_tokens=128"),
)
SECONDS = ("cost", "seconds", "tokens_per_s")


def timed(cluster: Slurm, home: Path, *words: str) -> float:
    """Run a command; the seconds it takes."""
    command = [sys.executable, "-m", "sae_sweeps", *words]
    began = time.monotonic()
    subprocess.run(command, cwd=home, env=cluster.env, stdin=subprocess.DEVNULL, check=True)
    return time.monotonic() - began


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of a sweep's table, less what depends on the time."""
    with (folder / "pareto.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [{k: v for k, v in row.items() if not k.startswith(SECONDS)} for row in rows]
    return sorted(kept, key=lambda row: row["run"])


def main_job(cluster: Slurm, home: Path) -> dict[str, Any]:
    """The 24 runs as four packs on four nodes, beside the same here."""
    words = (*PARETO, *JOB, "hydra.launcher.max_runs_per_pack=6")
    submitting = timed(cluster, home, *words)
    began = time.monotonic()
    folder = home / "outputs" / "pareto"
    until(lambda: status(cluster, folder)["counts"]["running"] == 24, "all runs at once", 300)
    middle = status(cluster, folder)
    places = Counter(f"{run['job']} on {run['node']}" for run in middle["runs"])
    timed(cluster, home, "wait", str(folder))
    waiting = time.monotonic() - began
    local = timed(cluster, home, *PARETO, "name=local")
    other = home / "outputs" / "local"
    same = [{**row, "sweep": ""} for row in table(other)]
    return {
        "submission_s": round(submitting, 2),
        "status_in_the_middle": middle["counts"],
        "runs_per_job_and_node": dict(sorted(places.items())),
        "submitted_to_report_s": round(waiting, 1),
        "jobs": len(set(jobs(folder))),
        "local_s": round(local, 1),
        "tables_equal": [{**row, "sweep": ""} for row in table(folder)] == same,
        "weights_rows_and_figures_equal": left_behind(folder) == left_behind(other),
    }


def overhead(cluster: Slurm, home: Path) -> dict[str, float]:
    """Seconds from command to report for 32 runs that train next to nothing, least of two."""
    waits = ("hydra.launcher.cpus=2", "hydra.launcher.wait=true")
    ours = ("hydra/launcher=slurm", "hydra.launcher.memory=1G", *waits)
    kinds = {
        "this process": (),
        "slurm, ours, 1 job": (*ours, "hydra.launcher.max_runs_per_pack=32"),
        "slurm, ours, 4 jobs": ours,
        "slurm, stock launcher, 32 jobs": STOCK,
    }
    least: dict[str, float] = {}
    for attempt in range(2):
        for kind, words in kinds.items():
            name = f"name={kind.replace(' ', '-').replace(',', '')}-{attempt}"
            seconds = timed(cluster, home, *TRIVIAL, name, *words)
            least[kind] = round(min(seconds, least.get(kind, seconds)), 2)
    return least


def main() -> None:
    """Measure and keep."""
    cluster = new_cluster()
    home = Path(tempfile.mkdtemp())
    load = os.getloadavg()[0]
    try:
        start(cluster, "--nodes", "4", "--gpus", "2")
        found = {"load_before": round(load, 2), "overhead_s_for_32_runs": overhead(cluster, home)}
        found["main_job"] = main_job(cluster, home)
    finally:
        cluster.script("stop")
        shutil.rmtree(cluster.folder, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)
    (RESULTS / "slurm.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
