"""Runs the main job as a user does and keeps its picture, table, times and memory under results/.

python tests/benchmarks/main_job.py
"""

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
COMMAND = ["-m", "+sweep=pareto", "tracking.mode=offline"]


def processor() -> str:
    """The processor's name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def main() -> None:
    """Run, measure, keep."""
    RESULTS.mkdir(exist_ok=True)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as place:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "sae_sweeps", *COMMAND], cwd=place, check=True)
        wall = time.monotonic() - began
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        sweep = Path(place) / "outputs" / "pareto"
        for suffix in ("png", "csv"):
            shutil.copy(sweep / f"pareto.{suffix}", RESULTS / f"main_job.{suffix}")
    figures = {
        "command": " ".join(["sae-sweeps", *COMMAND]),
        "wall_s": round(wall, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": round(used.ru_maxrss / 1024),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(load, 2),
        "processor": processor(),
        "python": platform.python_version(),
        "torch": version("torch"),
    }
    (RESULTS / "main_job.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
