"""The script that starts the tests' cluster: quick, clean, and clear where SLURM is missing."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import NOT_INSTALLED, SCRIPT, Slurm, new_cluster, start, until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


@pytest.fixture
def fresh() -> Iterator[Slurm]:
    cluster = new_cluster(nodes=4)
    yield cluster
    cluster.script("stop")
    shutil.rmtree(cluster.folder, ignore_errors=True)


def processes_of(cluster: Slurm) -> list[str]:
    """The commands of all processes that know the cluster's folder; zombies have none."""
    found: list[str] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, env = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if command and str(cluster.folder).encode() in command + env:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def test_it_starts_within_two_seconds_and_leaves_nothing_behind(fresh: Slurm) -> None:
    seconds: list[float] = []
    for _ in range(3):
        assert fresh.script("stop").returncode == 0
        begun = time.perf_counter()
        start(fresh, "--nodes", "4", "--gpus", "2")
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 2
    id = fresh.submit("trap '' TERM; sleep 301 & sleep 302", "--gres=gpu:2")
    until(lambda: "RUNNING" in fresh.run("squeue", "-h", "-j", id, "-o", "%T"), "the job's start")
    until(lambda: any("sleep 301" in each for each in processes_of(fresh)), "its processes")
    assert fresh.script("stop").returncode == 0
    assert processes_of(fresh) == []
    assert fresh.script("stop").returncode == 0


def test_sizes_accounting_and_further_lines_are_as_asked(fresh: Slurm) -> None:
    sizes = ("--nodes", "2", "--gpus", "3", "--cpus", "5", "--mem", "777")
    start(fresh, *sizes, "--acct", "none", "--extra", "MessageTimeout=7")
    nodes = fresh.run("sinfo", "-h", "-N", "-p", "gpu", "-o", "%N %c %m %G").splitlines()
    assert nodes == ["n1 5 777 gpu:3", "n2 5 777 gpu:3"]
    assert "MessageTimeout          = 7 sec" in fresh.run("scontrol", "show", "config")
    assert not (fresh.folder / "bin" / "sacct").exists()
    devices = fresh.run("srun", "--gres=gpu:2", "printenv", "CUDA_VISIBLE_DEVICES")
    assert devices == "0,1"


def test_where_slurm_is_missing_it_says_what_to_install(tmp_path: Path) -> None:
    for name in ("bash", "sed", "id"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    # The script looks in /usr/sbin by itself, where the daemons are but not the commands.
    done = subprocess.run(
        [str(tmp_path / "bash"), str(SCRIPT), "start"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == NOT_INSTALLED
    assert "apt-get install -y --no-install-recommends slurm-wlm munge" in done.stderr


def test_wrong_usage_is_told(fresh: Slurm) -> None:
    for words in (["begin"], [], ["start", "--nodes"], ["start", "--acct", "dbd"]):
        assert fresh.script(*words).returncode == 2, words
    assert not any(fresh.folder.iterdir())
