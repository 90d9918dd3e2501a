"""A launch with a real W&B client, and what it leaves at the server and on disk."""

from pathlib import Path
from typing import Any

from tests.support.fork_server import environment
from tests.support.launches import SMALL, Launch, rows
from tests.support.processes import children
from tests.support.wandb_backend import Backend
from tests.support.wandb_offline import OfflineRun, read

WORDS = [
    *(word for word in SMALL if word != "tracking=off"),
    *("name=it", "method=topk,mutual_choice", "training.log_every_tokens=1024"),
]
"""Two runs, of a target model that is for each test to say."""
MAIN = "tests.support.wandb_launch"
LIMITS = "sae_sweeps.tracking.wandb.session"
SOON = {f"{LIMITS}:FIRST_SENDS_EVERY_S": 1.0, f"{LIMITS}:OTHERS_SEND_EVERY_S": 1.0}
"""The least that W&B takes."""


class Place:
    """A launch in training, and what it meets."""

    def __init__(self, home: Path, backend: Backend) -> None:
        self.home, self.backend, self.folder = home, backend, home / "outputs" / "it"
        self.env = environment() | backend.client(home) | {"OMP_NUM_THREADS": "1"}
        self.launch: Launch

    def heal(self) -> None:
        """Have a server that works, and a key for it."""
        self.backend.stop()
        self.backend.come_back()
        self.backend.refuse, self.backend.delay_s = Backend.refuse, Backend.delay_s
        self.env |= self.backend.client(self.home)

    def services(self) -> list[int]:
        """W&B's own process."""
        return children(self.launch.pid)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """What W&B must have, from the runs' own files."""
        return {
            run.name: [{"tokens_seen": row.pop("tokens"), **row} for row in rows(run)]
            for run in (self.folder / "runs").iterdir()
        }

    def at_server(self) -> dict[str, list[dict[str, Any]]]:
        """The rows that the server has, in the order in which it has them."""
        runs = self.backend.runs.values()
        trained = [run for run in runs if run.fields.get("jobType") == "train"]
        return {str(run.fields["displayName"]): list(map(own, run.rows())) for run in trained}

    def on_disk(self) -> dict[str, list[dict[str, Any]]]:
        """The rows that W&B's files have, without those that two of them have."""
        found: dict[str, dict[int, dict[str, Any]]] = {}
        paths = (self.folder / "wandb").glob("*run-2*/*.wandb")
        logs: list[OfflineRun] = [read(path.parent) for path in paths]
        for log in logs:
            if log.fields["job_type"] == "train":
                known = found.setdefault(log.fields["name"], {})
                known |= {row["tokens_seen"]: own(row) for row in log.rows}
        return {name: [known[key] for key in sorted(known)] for name, known in found.items()}


def own(row: dict[str, Any]) -> dict[str, Any]:
    """Leave out what W&B adds itself."""
    return {key: value for key, value in row.items() if not key.startswith("_")}
