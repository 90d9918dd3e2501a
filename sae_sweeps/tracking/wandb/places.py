"""What W&B has in a sweep's folder, and what it is called there."""

from pathlib import Path


def logs_of(sweep: Path) -> Path:
    """Give the folder that W&B writes a sweep's logs into."""
    return sweep / "wandb"


def id_of(folder: Path) -> str | None:
    """Read the W&B id of a run's folder, or of a sweep's summary; None if W&B was told nothing."""
    path = id_file(folder)
    return path.read_text(encoding="utf-8").strip() if path.exists() else None


def id_file(folder: Path) -> Path:
    """Say where that id is kept."""
    return folder / "wandb_id.txt"


def dashboard_file(sweep: Path) -> Path:
    """Say where the address of a sweep's workspace is kept."""
    return sweep / "wandb_dashboard.txt"
