"""What a launch says about its runs, before and after training."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sae_sweeps.errors import one_line
from sae_sweeps.launching.errors import last_line
from sae_sweeps.launching.out import complain, write_line
from sae_sweeps.record import status
from sae_sweeps.record.plan import Plan
from sae_sweeps.record.result import Result
from sae_sweeps.system import interrupt
from sae_sweeps.tracking.interface import Tracking

_notes: list[str] = []


class RunFailed(RuntimeError):
    """A run that another process trained, and that failed there or was lost."""


def say(text: str) -> None:
    """Write a line for the user."""
    write_line(text)


def note(text: str) -> None:
    """Have a line said as soon as the command is known to be in order: a refusal is one line."""
    _notes.append(text)


def tell_notes() -> None:
    """Say what was noted."""
    for text in _notes:
        complain(text)
    _notes.clear()


def tell_plan(plan: Plan) -> None:
    """Say how many runs are ahead and why others are not."""
    tell_notes()
    todo = sum(len(pack) for pack in plan.packs)
    parts = [f"{todo} {'run' if todo == 1 else 'runs'} to train"]
    if plan.resumed:
        parts.append(f"{plan.resumed} of them from a checkpoint")
    if plan.remeasured:
        parts.append(f"{sum(len(group) for group in plan.remeasured)} to measure anew")
    if plan.finished:
        parts.append(f"{len(plan.finished)} finished before")
    if plan.under_way:
        jobs = sorted(set(plan.under_way.values()))
        parts.append(f"{len(plan.under_way)} under way in job {', '.join(jobs)}")
    if plan.aside:
        parts.append(f"{len(plan.aside)} moved into {status.shown(plan.folder)}/aside")
    if plan.repeated:
        parts.append(f"{plan.repeated} of {len(plan.points)} points repeat another's training")
    say(f"{plan.name}: {one_line(', '.join(parts))}")
    if plan.changed:
        words = [f"{path} {now} (was {was})" for path, (was, now) in plan.changed.items()]
        say(f"{plan.name}: beside runs that differ in {one_line(', '.join(words))}")


def tell_failures(failures: Sequence[tuple[str, object]]) -> None:
    """Say in one line each why runs failed."""
    for name, error in failures:
        reason = last_line(error) if isinstance(error, BaseException) else "no result"
        if isinstance(error, RunFailed):  # in whose words the error's name stands already
            reason = str(error)
        complain(f"{name} failed: {reason}")


def tell_end(
    plan: Plan, outcomes: Mapping[str, Result | Exception], tracking: Tracking | None = None
) -> None:
    """Say what failed, draw the report, say how many runs are finished."""
    failures = [(name, o) for name, o in outcomes.items() if isinstance(o, Exception)]
    tell_failures(failures)
    if len(failures) < len(outcomes):
        draw_report(plan.folder, tracking)
    done, total = len(outcomes) - len(failures), len(outcomes) + len(plan.under_way)
    busy = f", {len(plan.under_way)} under way" if plan.under_way else ""
    say(f"{plan.name}: {done} of {total} runs are finished{busy}")


def draw_report(folder: Path, tracking: Tracking | None = None) -> None:
    """Draw the sweep's report; plotting takes a second to load, so only when it is due."""
    from sae_sweeps.pareto.report import report

    try:
        report(folder, tracking)
    except OSError as error:  # the runs have their results, and `report` draws it later
        complain(f"the report is not written: {error}")


def renew_report(folder: Path, tracking: Tracking) -> None:
    """Draw the report so far and say nothing of it; where that fails, the last one tells."""
    from rich.console import Console

    from sae_sweeps.pareto.report import report

    with suppress(Exception):  # nothing of a report may end a sweep
        report(folder, tracking, Console(quiet=True))


def results(plan: Plan, lost: Mapping[str, str] | None = None) -> dict[str, Result | Exception]:
    """Read from the files what became of the plan's runs, which other processes trained.

    Args:
        lost: how the process of a run ended that left neither a result nor a failure.
    """
    judged = {run.name: run for run in status.read(plan.folder).runs}
    outcomes: dict[str, Result | Exception] = {}
    for run in plan.runs:
        result = run.files.result_of(run.config)
        found = judged[run.name]
        why = found.reason or f"it is {found.state}"
        if found.state != "failed":
            why = (lost or {}).get(run.name, why)
        outcomes[run.name] = result or RunFailed(why)
    return outcomes


def left(plan: Plan) -> int:
    """Say that a signal ended the launch and how it goes on; returns the exit code."""
    signum, seconds = interrupt.received() or (0, 0.0)
    if not plan.files.manifest.exists():
        complain("interrupted, before anything was trained")
        return 128 + signum
    names = {run.name: run for run in plan.runs}
    done = [r for r in names.values() if r.files.result_of(r.config)]
    text = f"interrupted, {len(done)} of {len(names)} runs are finished and the others saved"
    complain(f"{text} in {seconds:.1f} s; the same command goes on from there")
    return 128 + signum
