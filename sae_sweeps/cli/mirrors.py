"""The companion commands that deal with W&B."""

from collections.abc import Sequence
from pathlib import Path

from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.out import complain
from sae_sweeps.launching.summary import say
from sae_sweeps.record import manifest, status
from sae_sweeps.record.folder import SweepFolder
from sae_sweeps.record.manifest import Manifest
from sae_sweeps.record.run import Run
from sae_sweeps.record.status import SweepStatus
from sae_sweeps.tracking.wandb.places import logs_of


def sync(folders: Sequence[Path]) -> int:
    """Upload the sweeps' offline W&B runs; gives 1 if some could not be, else 0.

    Raises:
        ConfigError: for a folder that is no sweep's, before anything is uploaded, and for a server
            that cannot be used.
    """
    found = [status.read(folder) for folder in folders]
    from sae_sweeps.tracking.wandb import sync

    server: sync.Server | None = None
    failed = False
    for sweep in found:
        folder = sweep.folder.resolve()
        if not logs_of(folder).is_dir():
            say(f"{sweep.name}: nothing to upload, there are no W&B runs in its folder")
            continue
        server = server or sync.Server()
        running = {run.name for run in sweep.runs if run.state == "running"}
        with sync.bar(sweep.name) as advance:
            outcome = sync.sync(folder, running, _over(sweep), server, advance)
        for id, why in outcome.failed.items():
            complain(f"W&B run {id} is not uploaded whole: {why}")
        say(f"{sweep.name}: {outcome.line()}")
        failed |= bool(outcome.failed)
    return int(failed)


def _over(sweep: SweepStatus) -> list[Run]:
    """Give the runs that have a result or have failed."""
    found = manifest.read(sweep.folder)
    states = {run.name: run.state for run in sweep.runs}
    place = SweepFolder(sweep.folder.resolve())
    return [
        Run(name, found.name, place.run(name).path, point.config, point.choices, point.overrides)
        for name, point in dict(zip(found.runs, found.points, strict=True)).items()
        if states.get(name) in ("done", "failed")
    ]


def dashboard(folders: Sequence[Path]) -> int:
    """Make or renew the W&B workspaces of the sweeps and tell where they are; gives 0.

    Raises:
        ConfigError: for a folder that is no sweep's or whose runs W&B does not have, for a package
            that is missing, and for a server that cannot be used.
    """
    places = [(folder, _place(folder, manifest.read(folder))) for folder in folders]
    from sae_sweeps.tracking.wandb import dashboard
    from sae_sweeps.tracking.wandb.server import Server

    dashboard.require()
    server = Server()
    for folder, place in places:
        say(dashboard.save(folder, *place, server))
    return 0


def _place(folder: Path, found: Manifest) -> tuple[str, str, str]:
    """Tell a sweep's name, and in which project and of which entity its runs are in W&B."""
    for point in reversed(found.points):
        tracking = point.config.nodes["tracking"]
        if "project" in tracking:
            return found.name, tracking["project"], tracking.get("entity") or ""
    shown = status.shown(folder)
    raise ConfigError(f"{shown} has no runs in W&B: they were trained without tracking=wandb.")
