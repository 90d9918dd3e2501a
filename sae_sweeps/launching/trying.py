"""A plan's times from a try: with what a launch would import, and as it would compute."""

import time
from typing import Any

from sae_sweeps.errors import ConfigError, one_line
from sae_sweeps.launching import progress
from sae_sweeps.planning.estimate import Estimate
from sae_sweeps.record.plan import Plan


def tried(plan: Plan, shown: str, **how: Any) -> Estimate:
    """Try a few steps of each kind of run that a plan has.

    Args:
        shown: whether to show how far it is, as of `hydra.launcher.progress`.
        how: further arguments of `Probe`.

    Raises:
        ConfigError: something cannot be loaded or computed, such as for want of memory.
    """
    began = time.monotonic()
    from sae_sweeps.planning.probe import Probe

    ahead = [run for pack in [*plan.packs, *plan.remeasured] for run in pack]
    with progress.make(shown, len(ahead), 0) as display:
        try:
            return Probe(ahead, display, began, **how)
        except (RuntimeError, MemoryError, OSError) as error:
            text = f"plan: a step could not be tried ({one_line(error)})"
            raise ConfigError(f"{text}; --gpu tells times without a try.") from error
