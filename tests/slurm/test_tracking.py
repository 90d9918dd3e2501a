"""Jobs that are preempted again and again leave at W&B what undisturbed ones leave."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.slow_model import SLOW_TARGET
from tests.support.wandb_backend import Backend

from .conftest import Slurm, until
from .sweeps import (
    jobs,
    preempt,
    sae_sweeps,
    started,
    submit,
    sweep,
    wait_for_end,
    wait_for_tokens,
)

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

WORDS = (*SLOW_TARGET, "tracking=wandb", "training.tokens=98304", "training.log_every_tokens=2048")
ROWS = 48
PREEMPTED_AT = (8_000, 22_000, 38_000)
"""A preemption takes a moment, in which the job must not come to its end."""
BY_THE_CLOCK = ("perf/tokens_per_s", "_timestamp", "_runtime", "_wandb")

Rows = dict[str, list[dict[str, Any]]]


def at_server(backend: Backend) -> Rows:
    """What the server has of each run, its steps among it, less what depends on the time."""
    runs = [run for run in backend.runs.values() if run.fields["jobType"] == "train"]
    assert len(runs) == 2 and all(run.complete and run.exit_code == 0 for run in runs)
    return {
        str(run.fields["displayName"]): [
            {key: value for key, value in row.items() if key not in BY_THE_CLOCK}
            for row in run.rows()
        ]
        for run in runs
    }


def undisturbed(slurm: Slurm, home: Path) -> Rows:
    with Backend() as backend:
        home.mkdir()
        env = backend.client(home) | {"WANDB_MODE": "online"}
        done = sae_sweeps(slurm, home, *sweep(*WORDS), **env)
        assert done.returncode == 0, done.stderr
        return at_server(backend)


def preempted(slurm: Slurm, home: Path, mode: str) -> Rows:
    """Take the job's node away three times."""
    with Backend() as backend:
        env = backend.client(home) | {"WANDB_MODE": mode}
        memory = "hydra.launcher.memory=3900M"  # a node of its own
        folder = submit(slurm, home, *WORDS, memory, "hydra.launcher.partition=low", **env)
        for number, tokens in enumerate(PREEMPTED_AT, 1):
            wait_for_tokens(slurm, folder, tokens)
            assert started(folder) == number
            [job] = jobs(folder)
            preempt(slurm, slurm.run("squeue", "-h", "-j", job, "-o", "%N"))
            until(lambda n=number: started(folder) > n, "another start", 60)
        assert wait_for_end(slurm, folder)["counts"]["done"] == 2
        assert started(folder) == 4
        if mode == "offline":
            assert backend.runs == {}
            done = sae_sweeps(slurm, home, "sync", str(folder), **env)
            assert (done.returncode, done.stderr) == (0, "")
        return at_server(backend)


def test_three_preemptions_leave_the_rows_of_an_undisturbed_run(
    slurm: Slurm, tmp_path: Path
) -> None:
    with ThreadPoolExecutor() as pool:
        disturbed = {
            mode: pool.submit(preempted, slurm, tmp_path / mode, mode)
            for mode in ("online", "offline")
        }
        expected = undisturbed(slurm, tmp_path / "undisturbed")
        assert all(len(rows) == ROWS for rows in expected.values())
        for job in disturbed.values():
            assert job.result() == expected
