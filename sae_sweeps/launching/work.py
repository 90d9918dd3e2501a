"""A pack's work in this process: runs are trained, or measured anew, and what fails is recorded."""

import re
import traceback
from collections.abc import Collection, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.errors import last_line
from sae_sweeps.launching.writer import as_config_error
from sae_sweeps.record.plan import finished_result, up_to_date, write_run_files
from sae_sweeps.record.run import Run, identity
from sae_sweeps.system import files, interrupt

if TYPE_CHECKING:
    from sae_sweeps.launching.progress import Display

Result = dict[str, Any] | Exception


@runtime_checkable
class Gate(Protocol):
    """What stands between loading a model and writing the first file of a sweep."""

    begun: bool
    """Whether it is behind us: until then a mistake refuses the launch, later it fails runs."""
    anew: Collection[str]
    """Runs to train whatever their folders hold, since these make room at the gate."""

    def begin(self) -> None:
        """Go through; a second time does nothing."""


class Open:
    """The gate of a process that another one launched."""

    begun = True
    anew: Collection[str] = ()

    def begin(self) -> None:
        """Do nothing."""


def work(pack: Sequence[Run], tracking: Any, display: "Display", gate: Gate) -> dict[str, Result]:
    """Train what is not finished, measure anew what is out of date; outcomes by the run's name."""
    outcomes: dict[str, Result] = {}
    train: list[Run] = []
    measure: list[Run] = []
    for run in pack:
        result = finished_result(run.folder, identity(run.config))
        if result is None or run.name in gate.anew:
            train.append(run)
        elif up_to_date(result, run):
            outcomes[run.name] = result
        else:
            measure.append(run)
    outcomes |= _train(train, tracking, display, gate)
    return outcomes | _measure(measure, tracking, display, gate)


def _train(runs: list[Run], tracking: Any, display: "Display", gate: Gate) -> dict[str, Result]:
    if not runs:
        return {}
    interrupt.check()  # a signal may have come as the last pack ended, which did not look any more
    from sae_sweeps.training.pack import train_pack

    display.names = [f"{r.label}, k {r.config['k']:g}, seed {r.config['seed']}" for r in runs]
    try:
        ready = partial(_ready, runs, gate)
        results = train_pack(runs, tracking, display, ready, isolate=gate.begun)
    except Exception as error:  # whatever loading raises: other packs go on
        _refuse(error, gate)
        results = [error for _ in runs]
    for run, result in zip(runs, results, strict=True):
        told = (run.folder / "failed.json").exists() or files.is_locked(run.folder / ".lock")
        if isinstance(result, Exception) and not told:
            record(run, result)
    return dict(zip((run.name for run in runs), results, strict=True))


def _measure(runs: list[Run], tracking: Any, display: "Display", gate: Gate) -> dict[str, Result]:
    """What fails keeps the result it has."""
    if not runs:
        return {}
    from sae_sweeps.training.remeasure import remeasure_pack

    try:
        results = remeasure_pack(runs, tracking, display, on_ready=partial(_ready, runs, gate))
    except Exception as error:  # whatever loading raises: other packs go on
        _refuse(error, gate)
        results = [error for _ in runs]
    return dict(zip((run.name for run in runs), results, strict=True))


def _ready(runs: list[Run], gate: Gate) -> None:
    gate.begin()
    with as_config_error():
        for run in runs:
            if not files.is_locked(run.folder / ".lock"):  # else another process has it
                write_run_files(run)


def _refuse(error: Exception, gate: Gate) -> None:
    """Before anything is written, an error is the whole launch's; a lack of memory is worded."""
    if gate.begun:
        return
    tried = re.search(r"(?i)(tried|unable) to allocate ([\d.]+ \w+)", str(error))
    if isinstance(error, MemoryError) or tried:
        size = f" {tried[2]} more" if tried else ""
        text = f"the first runs do not fit into memory, which cannot give{size or ' enough'}"
        raise ConfigError(f"{text}: d_sae, a chunk or the target model is too large.") from error
    raise error


def record(run: Run, error: Exception) -> Exception:
    """Leave a trace of a run that did not come to write its own; the others go on."""
    with suppress(OSError):  # a full disk may be the very reason
        run.folder.mkdir(parents=True, exist_ok=True)
        with (run.folder / "run.log").open("a", encoding="utf-8") as log:
            log.writelines(traceback.format_exception(error))
        files.write_json(run.folder / "failed.json", {"error": last_line(error)})
    return error
