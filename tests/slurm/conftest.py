"""A real SLURM for these tests: one throw-away cluster of four nodes with two GPUs each."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "start-slurm.sh"
NODES, GPUS = 4, 2
NOT_INSTALLED = 77
OTHER_CLUSTERS = ("SLURM", "SBATCH", "SRUN", "SQUEUE", "SACCT", "SCANCEL")


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs on this machine, and how to reach it."""

    folder: Path
    """Where its `slurm.conf`, sockets and logs are."""
    port: int
    """The first of its ports."""

    @property
    def env(self) -> Mapping[str, str]:
        """This process's environment, with SLURM's commands pointed at the cluster."""
        env = {
            key: value for key, value in os.environ.items() if not key.startswith(OTHER_CLUSTERS)
        }
        return env | {
            "SLURM_CONF": str(self.folder / "etc" / "slurm.conf"),
            # Daemons lie where not every user looks.
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def run(self, *command: str) -> str:
        """Run a command on the cluster's side and give what it prints."""
        done = subprocess.run(
            command, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, script: str, *options: str) -> str:
        """Submit a shell script and give the job's id."""
        return self.run("sbatch", "--parsable", "--output=/dev/null", *options, f"--wrap={script}")

    def script(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Call the script that starts and stops this cluster."""
        place = {"SLURM_LOCAL_DIR": str(self.folder), "SLURM_LOCAL_PORT": str(self.port)}
        return subprocess.run(
            [str(SCRIPT), *words],
            env={**os.environ, **place},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )


def until(
    happens: Callable[[], bool], what: str, seconds: float = 30, every_s: float = 0.05
) -> None:
    """Look until something happens; fail when it does not."""
    deadline = time.monotonic() + seconds
    while not happens():
        if time.monotonic() > deadline:
            pytest.fail(f"{what}: not after {seconds:.0f} s")
        time.sleep(every_s)


def new_cluster(nodes: int = NODES) -> Slurm:
    """Choose a folder and ports for a cluster; nothing is started."""
    # pytest's own folders are too deep for a socket's path.
    return Slurm(Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp")), _free_ports(nodes + 2))


def start(cluster: Slurm, *options: str) -> None:
    """Start a cluster; skip the test that asks for it where SLURM is not installed."""
    done = cluster.script("start", *options)
    if done.returncode == NOT_INSTALLED:
        tell = pytest.fail if os.environ.get("SAE_SWEEPS_NO_SKIPS") else pytest.skip
        tell(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """The cluster; mark files that use it `xdist_group("slurm")`, so that one worker starts it."""
    cluster = new_cluster()
    try:
        start(cluster, "--nodes", str(NODES), "--gpus", str(GPUS))
        yield cluster
        done = cluster.script("stop")
        assert done.returncode == 0, done.stderr
    finally:
        cluster.script("stop")
        shutil.rmtree(cluster.folder, ignore_errors=True)


@pytest.fixture
def here(slurm: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """The cluster, with this process's own calls of SLURM's commands pointed at it."""
    for key in [key for key in os.environ if key.startswith(OTHER_CLUSTERS)]:
        monkeypatch.delenv(key)
    for key in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(key, slurm.env[key])
    return slurm


def _free_ports(count: int) -> int:
    """Find the first of some neighbouring ports, below those that the system hands out."""
    for first in range(20_000 + os.getpid() % 8_000, 32_000, count):
        if all(_is_free(port) for port in range(first, first + count)):
            return first
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
