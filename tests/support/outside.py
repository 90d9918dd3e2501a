"""A user's folder outside the project, and the real command line in it."""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from tests.support.launches import the_launches
from tests.support.places import ROOT

TINY = """
# @package _global_
name: tiny
k: 4
d_sae: 64
device: cpu
stream: {batch_tokens: 256, chunk_tokens: 1024, calibration_tokens: 512}
training: {tokens: 8192}
evaluation: {tokens: 1024, ce_tokens: 512}
"""
"""A sweep file."""


def lay_out(home: Path, modules: Mapping[str, str], option_files: Mapping[str, str]) -> None:
    """Write modules beside the command, and config files in a folder of their own."""
    files = {f"{name}.py": code for name, code in modules.items()}
    files |= {f"mine/{name}.yaml": text.lstrip() for name, text in option_files.items()}
    for name, text in files.items():
        path = home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def sae_sweeps(home: Path, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Train with the user's config files; without a tracker where none is given."""
    tracker = [] if any(word.startswith("tracking=") for word in words) else ["tracking=off"]
    return command(home, "--config-dir", "mine", *words, *tracker, before=before)


def command(home: Path, *words: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run the command as its console script does: the working folder is not on Python's path.

    Code that is to run before it changes what a test could not reach from here.
    """
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    launch = the_launches().run(home, *words, env=env, before=before)
    assert launch.code is not None
    return subprocess.CompletedProcess(words, launch.code, launch.out, launch.err)


def stopped_at(tokens: int) -> str:
    """Code that signals the process when a run has so many tokens."""
    return f"""
from sae_sweeps.system import interrupt
from sae_sweeps.training.member import Member

train = Member._train

def some(self, batch):
    train(self, batch)
    if self.trainer.tokens == {tokens}:
        interrupt._on_signal(15, None)

Member._train = some
"""


def results(home: Path, name: str) -> list[tuple[Path, dict[str, Any]]]:
    """Give the finished runs of a sweep: their folders and results."""
    paths = sorted((home / "outputs" / name / "runs").glob("*/result.json"))
    return [(path.parent, json.loads(path.read_text())) for path in paths]


def weights(folder: Path) -> dict[str, Tensor]:
    """Read a finished run's weights."""
    return load_file(folder / "checkpoint" / "weights.safetensors")


def rows(folder: Path) -> list[dict[str, float]]:
    """Read a run's rows of metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
