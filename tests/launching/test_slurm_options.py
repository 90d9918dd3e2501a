"""What the launcher `slurm` asks sbatch for; a script in its place keeps the request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.slurm import minutes


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with an sbatch that accepts everything."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {"sbatch": "echo Submitted batch job 7", "srun": "exit 1"}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return folder


def submitted(tools: Path, *options: str) -> str:
    """What is said of a submission."""
    words = ["hydra/launcher=slurm", "name=it", "tracking=off", *options]
    done = subprocess.run(
        [sys.executable, "-m", "sae_sweeps", *words],
        cwd=tools.parent,
        env=os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def request(tools: Path, *options: str) -> list[str]:
    """The lines of the script that is submitted."""
    submitted(tools, *options)
    [script] = (tools.parent / "outputs/it/packs").glob("*/*_submission.sh")
    return script.read_text().splitlines()


def test_what_is_ahead_is_told_in_a_line_where_it_is_known(tools: Path) -> None:
    """The short form of what `plan` tells; how fast a CPU is would have to be tried."""
    said = submitted(tools, "hydra.launcher.gpus=a100:1", "hydra.launcher.max_runs_per_pack=1")
    [line] = [line for line in said.splitlines() if line.startswith("Ahead: ")]
    assert line.startswith("Ahead: 1 pack, ") and "of memory at most" in line
    assert "estimated from the rates of the A100" in line and line.endswith(" on disk")
    assert "Ahead" not in submitted(tools, "hydra.launcher.gpus=0", "hydra.sweep.dir=other")


def test_every_option_reaches_sbatch(tools: Path) -> None:
    given = {
        **{"partition": "gpu", "account": "lab", "qos": "low", "constraint": "a100|h100"},
        **{"gpus": "a100:2", "cpus": "6", "memory": "32G", "time": "1-02:30", "seed": "0,1"},
        **{"max_runs_per_pack": "1", "array_parallelism": "1", "signal_delay_s": "300"},
        "setup": "[module load cuda]",
        "extra": "{nodelist: n1, additional_parameters: {reservation: mine}}",
    }
    del given["seed"]
    words = [f"hydra.launcher.{key}={value}" for key, value in given.items()]
    lines = request(tools, "seed=0,1", *(w.replace("a100|h100", "'a100|h100'") for w in words))
    asked = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert asked >= {
        *("partition=gpu", "account=lab", "qos=low", "constraint='a100|h100'"),
        *("gpus-per-node=a100:2", "cpus-per-task=6", "mem=32G", "time=1590"),
        *("array=0-1%1", "signal=USR2@300", "nodelist=n1", "reservation=mine", "job-name=it"),
    }
    assert lines.index("module load cuda") < next(
        index for index, line in enumerate(lines) if line.startswith("srun")
    )


def test_what_is_null_is_left_to_the_cluster(tools: Path) -> None:
    lines = request(tools, "hydra.launcher.gpus=0")
    left = ("partition", "account", "qos", "constraint", "gpus", "mem", "array")
    assert not [line for line in lines if line.startswith(tuple(f"#SBATCH --{w}" for w in left))]
    assert "#SBATCH --time=240" in lines


@given(st.integers(0, 30), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_times_are_read_as_slurm_reads_them(days: int, hours: int, mins: int, secs: int) -> None:
    whole = (days * 24 + hours) * 60 + mins
    up = whole + (secs > 0)
    if whole:
        assert minutes(f"{days}-{hours}:{mins:02}") == whole
        assert minutes(whole) == minutes(str(whole)) == whole
    if up:
        assert minutes(f"{days}-{hours:02}:{mins:02}:{secs:02}") == up
        assert minutes(f"{days * 24 + hours}:{mins:02}:{secs:02}") == up
        assert minutes(f"{whole}:{secs:02}") == up
    if days or hours:
        assert minutes(f"{days}-{hours}") == (days * 24 + hours) * 60


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1h", "1:2:3:4", "1-2:3:4:5", "00:00"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.time is"):
        minutes(text)
