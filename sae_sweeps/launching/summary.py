"""What a launch says about its runs, before and after training."""

import sys
from collections.abc import Sequence

from sae_sweeps.launching.errors import last_line
from sae_sweeps.run import one_line
from sae_sweeps.sweep import Plan


def say(text: str) -> None:
    """Write a line for the user."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write one line about something wrong."""
    sys.stderr.write(f"sae-sweeps: {one_line(text)}\n")
    sys.stderr.flush()


def tell_plan(plan: Plan) -> None:
    """Say how many runs are ahead and why others are not."""
    todo = sum(len(pack) for pack in plan.packs)
    parts = [f"{todo} {'run' if todo == 1 else 'runs'} to train"]
    if plan.resumed:
        parts.append(f"{plan.resumed} of them from a checkpoint")
    if plan.remeasured:
        parts.append(f"{sum(len(group) for group in plan.remeasured)} to measure anew")
    if plan.finished:
        parts.append(f"{len(plan.finished)} finished before")
    if plan.repeated:
        parts.append(f"{plan.repeated} of {len(plan.points)} points repeat another's training")
    say(f"{plan.name}: {', '.join(parts)}")


def tell_failures(failures: Sequence[tuple[str, object]]) -> None:
    """Say in one line each why runs failed."""
    for name, error in failures:
        reason = last_line(error) if isinstance(error, BaseException) else "no result"
        complain(f"{name} failed: {reason}")
