"""What W&B has in a sweep's folder, and what it is called there."""

import re
from pathlib import Path

from sae_sweeps.errors import ConfigError, one_line

ID = re.compile(r"\w[\w.-]{0,127}", re.ASCII)


def logs_of(sweep: Path) -> Path:
    """Give the folder that W&B writes a sweep's logs into."""
    return sweep / "wandb"


def id_of(folder: Path) -> str | None:
    """Read the W&B id of a run's folder, or of a sweep's summary; None if W&B was told nothing.

    Raises:
        ConfigError: the file says something else, by which other files would be found.
    """
    path = id_file(folder)
    if not path.exists():
        return None
    id = path.read_text(encoding="utf-8").strip()
    if not ID.fullmatch(id):
        raise ConfigError(f"{path} holds {one_line(repr(id))}, which is not the id of a W&B run.")
    return id


def id_file(folder: Path) -> Path:
    """Say where that id is kept."""
    return folder / "wandb_id.txt"


def dashboard_file(sweep: Path) -> Path:
    """Say where the address of a sweep's workspace is kept."""
    return sweep / "wandb_dashboard.txt"
