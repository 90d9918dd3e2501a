"""A pack's work in this process: runs are trained, or measured anew, and what fails is recorded."""

import re
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.errors import last_line
from sae_sweeps.launching.writer import as_config_error
from sae_sweeps.record.plan import up_to_date
from sae_sweeps.record.result import Failure, Result
from sae_sweeps.record.run import Run
from sae_sweeps.system import files, interrupt
from sae_sweeps.tracking.interface import Tracking

if TYPE_CHECKING:
    from sae_sweeps.launching.progress import Display
    from sae_sweeps.training.pack import Pack

Outcome = Result | Exception
"""What became of a run: its result, or why there is none."""


class Work:
    """What is left to do of a pack: `load` it, then `do` it; nothing is written before."""

    def __init__(self, pack: Sequence[Run], anew: Collection[Run] = ()) -> None:
        """Look which runs are finished.

        Args:
            anew: runs to train whatever their folders hold.
        """
        self.finished: dict[str, Result] = {}
        self.train: list[Run] = []
        self.measure: list[Run] = []
        self.pack: Pack | None = None
        for run in pack:
            result = None if run in anew else run.files.result_of(run.config)
            if result is None:
                self.train.append(run)
            elif up_to_date(result, run):
                self.finished[run.name] = result
            else:
                self.measure.append(run)

    def load(self, display: "Display") -> None:
        """Load model and data, and build what is to be trained; raises whatever that raises."""
        if self.train or self.measure:
            interrupt.check()  # a signal may have come as the last pack ended, which did not look
            from sae_sweeps.training.pack import load

            self.pack = load(self.train, self.measure, display)

    def load_first(self, display: "Display") -> None:
        """Load the first pack of a launch, which whatever is wrong with it refuses.

        Raises:
            ConfigError: what only model or data could tell, or there is too little memory.
        """
        try:
            self.load(display)
            for fault in self.pack.faults if self.pack else ():
                raise fault
        except Exception as error:
            if text := _lack_of_memory(error):
                raise ConfigError(text) from error
            raise

    def do(self, tracking: Tracking) -> dict[str, Outcome]:
        """Train and measure what was loaded; outcomes by the run's name."""
        trained: list[Outcome] = []
        measured: list[Outcome] = []
        try:
            self._begin()
            if self.pack and self.train:
                trained = self.pack.train(tracking)
            if self.pack and self.measure:
                measured = self.pack.measure(tracking)
        except Exception as error:
            return self.failed(error)
        return self._told(trained, measured)

    def failed(self, error: Exception) -> dict[str, Outcome]:
        """Have all that was to do fail for one reason."""
        return self._told([error] * len(self.train), [error] * len(self.measure))

    def _begin(self) -> None:
        with as_config_error():
            for run in (*self.train, *self.measure):
                if not files.is_locked(run.files.lock):  # else another process has it
                    run.files.begin(run.config, run.overrides)

    def _told(self, trained: list[Outcome], measured: list[Outcome]) -> dict[str, Outcome]:
        """Record failures that have not recorded themselves; one in measuring keeps its result."""
        for run, outcome in zip(self.train, trained, strict=True):
            told = run.files.failed.exists() or files.is_locked(run.files.lock)
            if isinstance(outcome, Exception) and not told:
                record(run, outcome)
        runs, outcomes = [*self.train, *self.measure], [*trained, *measured]
        return self.finished | dict(zip((run.name for run in runs), outcomes, strict=True))


def work(pack: Sequence[Run], tracking: Tracking, display: "Display") -> dict[str, Outcome]:
    """Do what is left of a pack; outcomes by the run's name, also if it cannot be loaded."""
    left = Work(pack)
    try:
        left.load(display)
    except Exception as error:  # whatever loading raises: other packs go on
        return left.failed(error)
    return left.do(tracking)


def _lack_of_memory(error: Exception) -> str:
    """Word a lack of memory; nothing for another error."""
    tried = re.search(r"(?i)(tried|unable) to allocate ([\d.]+ \w+)", str(error))
    if not isinstance(error, MemoryError) and not tried:
        return ""
    size = f" {tried[2]} more" if tried else ""
    text = f"the first runs do not fit into memory, which cannot give{size or ' enough'}"
    return f"{text}: d_sae, a chunk or the target model is too large."


def record(run: Run, error: Exception) -> Exception:
    """Leave a trace of a run that did not come to write its own; the others go on."""
    with suppress(OSError):  # a full disk may be the very reason
        run.folder.mkdir(parents=True, exist_ok=True)
        with run.files.log.open("a", encoding="utf-8") as log:
            log.writelines(traceback.format_exception(error))
        run.files.fail(Failure(last_line(error)))
    return error
