"""The README's lines about SLURM, on a real one."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.places import ROOT

from .conftest import Slurm
from .sweeps import sae_sweeps_itself, status

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

README = (ROOT / "README.md").read_text()
TINY = (
    *("tracking=off", "d_sae=64", "method=topk,relu", "k=4,8", "training.tokens=4096"),
    *("stream.batch_tokens=1024", "stream.chunk_tokens=2048", "stream.calibration_tokens=1024"),
    *("evaluation.tokens=1024", "evaluation.ce_tokens=256"),
)


def test_the_lines_of_the_readme(slurm: Slurm, tmp_path: Path) -> None:
    section = README[README.index("## On a SLURM cluster") :]
    lines = re.findall(r"```sh\n(.*?)```", section, flags=re.DOTALL)[0].splitlines()
    words = [shlex.split(line.partition(" #")[0])[1:] for line in lines]
    assert [line[0] for line in words] == ["+sweep=pareto", "status", "wait", "cancel"]
    for line in words:
        done = sae_sweeps_itself(slurm, tmp_path, *line, *(TINY if "=" in line[0] else ()))
        assert done.returncode == 0, done.stderr
    assert status(slurm, tmp_path / "outputs" / "fanned")["counts"]["done"] == 4
    assert (tmp_path / "outputs" / "fanned" / "pareto.png").exists()
    [log] = (tmp_path / "outputs" / "fanned" / "packs").glob("*.log")
    assert "a GPU, but torch" in log.read_text()  # the cluster's GPUs are no real ones
