"""How long a run takes, by all its attempts."""

import time
from collections.abc import Mapping
from typing import Any


class Clock:
    """Seconds by the clock, and of CPU time that the process used meanwhile.

    The runs of a pack share their process, and so its CPU time.
    """

    def __init__(self) -> None:
        self.started = {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Add what earlier attempts took, as `read` told it to a checkpoint."""
        # Checkpoints of earlier versions know nothing of CPU time.
        self.started = {name: at - state.get(name, 0.0) for name, at in self.started.items()}

    def read(self) -> dict[str, float]:
        """`seconds` and `cpu_seconds` so far."""
        now = {"seconds": time.monotonic(), "cpu_seconds": time.process_time()}
        return {name: now[name] - at for name, at in self.started.items()}
