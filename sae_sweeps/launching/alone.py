"""One run where a launcher that is not ours put it: `basic`, `submitit_local`, `submitit_slurm`."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.signature import build
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.leaving import leave
from sae_sweeps.record.inspection import inspect
from sae_sweeps.record.plan import LAUNCH_ONLY
from sae_sweeps.record.run import Run
from sae_sweeps.system import interrupt


def train_alone(config: RunConfig, choices: dict[str, str]) -> None:
    """Train one run as a pack of one; raises the run's own exception."""
    from sae_sweeps.launching.progress import Quiet
    from sae_sweeps.training.pack import load

    for wish in LAUNCH_ONLY:
        if getattr(config, wish):
            where = "hydra/launcher=local and slurm"
            raise ConfigError(f"{wish} is for {where}; here, move the folder away.")
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    run = Run(
        name=folder.name,
        sweep=config.name or folder.parent.parent.name,
        folder=folder,
        config=config,
        choices=choices,
        overrides=[str(override) for override in hydra.overrides.task],
    )
    inspect(folder)
    if run.files.result_of(config) is not None:
        return
    tracking = build(config.nodes["tracking"])
    display = Quiet(1, config.total_tokens)
    with interrupt.listening() as before:
        try:
            pack = load([run], [], display)
            for fault in pack.faults:
                raise fault
            run.files.begin(config, run.overrides)
            [outcome] = pack.train(tracking)
        except interrupt.Interrupted:
            tracking.close(interrupt.LEAVING_LIMIT_S)
            leave(before)
    tracking.close()
    if isinstance(outcome, Exception):
        raise outcome
