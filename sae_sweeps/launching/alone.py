"""One run where a launcher that is not ours put it: `basic`, `submitit_local`, `submitit_slurm`."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from sae_sweeps.config.signature import build
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.leaving import leave
from sae_sweeps.record.plan import LAUNCH_ONLY, finished_result, write_run_files
from sae_sweeps.record.run import Run, identity
from sae_sweeps.system import interrupt


def train_alone(config: dict[str, Any], choices: dict[str, str]) -> None:
    """Train one run as a pack of one; raises the run's own exception."""
    from sae_sweeps.launching.progress import Quiet
    from sae_sweeps.training.pack import train_pack

    for wish in LAUNCH_ONLY:
        if config[wish]:
            where = "hydra/launcher=local and slurm"
            raise ConfigError(f"{wish} is for {where}; here, move the folder away.")
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    run = Run(
        name=folder.name,
        sweep=config["name"] or folder.parent.parent.name,
        folder=folder,
        config=config,
        choices=choices,
        overrides=[str(override) for override in hydra.overrides.task],
    )
    if finished_result(folder, identity(config)) is not None:
        return
    tracking = build(config["tracking"])
    display = Quiet(1, config["training"]["tokens"])
    with interrupt.listening() as before:
        try:
            [outcome] = train_pack([run], tracking, display, lambda: write_run_files(run))
        except interrupt.Interrupted:
            tracking.close(interrupt.LEAVING_LIMIT_S)
            leave(before)
    tracking.close()
    if isinstance(outcome, Exception):
        raise outcome
