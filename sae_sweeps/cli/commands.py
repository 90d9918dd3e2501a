"""The companion commands: verbs that look at a sweep's folder. None of them needs Hydra."""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sae_sweeps.cli.help_texts import (
    CANCEL_HELP,
    DASHBOARD_HELP,
    REPORT_HELP,
    RETRY_HELP,
    STATUS_HELP,
    SYNC_HELP,
)
from sae_sweeps.errors import ConfigError, did_you_mean
from sae_sweeps.launching.out import complain, write_line

REFRESH_S = 5.0
"""Between two looks of `status --watch`."""


def report(args: argparse.Namespace) -> int:
    """Draw the report of each folder again, from the runs' result.json."""
    from sae_sweeps.record.folder import SweepFolder

    for folder in args.folder:
        if not SweepFolder(folder).home.is_dir():
            raise ConfigError(f"{folder} is not a sweep's folder: it has no runs/.")
    from sae_sweeps.pareto.report import report, report_side_by_side

    for folder in args.folder:
        report(folder.absolute())
    if args.page or len(args.folder) > 1:
        folders = [folder.resolve() for folder in args.folder]
        shared = Path(os.path.commonpath([folder.parent for folder in folders]))
        report_side_by_side(folders, args.page or SweepFolder(shared).page)
    return 0


def status(args: argparse.Namespace) -> int:
    """Tell the state of each sweep's runs."""
    from sae_sweeps.record import status

    if args.json:
        _print_json([status.read(folder).as_json() for folder in args.folder])
        return 0
    from rich.console import Group
    from rich.live import Live

    from sae_sweeps.cli import status_table
    from sae_sweeps.system import terminal

    console = terminal.console()
    found = [status.read(folder) for folder in args.folder]
    if args.watch and console.is_terminal:
        with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                live.update(Group(*(status_table.render(s, console) for s in found)), refresh=True)
                if all(sweep.over for sweep in found):
                    return 0
                time.sleep(REFRESH_S)
                found = [status.read(folder) for folder in args.folder]
    for sweep in found:
        console.print(status_table.render(sweep, console), crop=False)
    return 0


def wait(args: argparse.Namespace) -> int:
    """Wait until nothing more will happen to each sweep; 2 if runs failed or were lost."""
    from sae_sweeps.record import status

    for folder in args.folder:
        status.read(folder)  # a wrong folder is told before the wait for the others
    until = time.monotonic() + 60 * args.timeout_minutes
    try:
        return max([_wait_for(folder, until, args.every_s) for folder in args.folder])
    except TimeoutError as error:
        raise ConfigError(f"{error}, after {args.timeout_minutes:g} minutes.") from None


def _wait_for(folder: Path, until: float, every_s: float) -> int:
    from sae_sweeps.launching import monitor, progress
    from sae_sweeps.record import status

    runs = status.read(folder).runs
    left = until - time.monotonic()
    with progress.make("auto", len(runs), sum(run.total_tokens for run in runs)) as display:
        found = monitor.watch(folder, display, every_s=every_s, timeout_s=left)
    broken = [run for run in found.runs if run.state != "done"]
    for run in broken:
        complain(f"{run.name} {_was(run.state)}: {run.reason}")
    done = len(found.runs) - len(broken)
    if done:
        from sae_sweeps.pareto.report import report

        report(folder.absolute())
    write_line(f"{found.name}: {done} of {len(found.runs)} runs are finished")
    return 2 if broken else 0


def _was(state: str) -> str:
    return "was lost" if state == "lost" else state


def cancel(args: argparse.Namespace) -> int:
    """End each sweep's jobs and the local command that trains it."""
    from sae_sweeps.launching import cancelling
    from sae_sweeps.record import status

    for folder in args.folder:
        status.read(folder)  # a wrong folder is told before anything ends
    ended: list[dict[str, Any]] = []
    for folder in args.folder:
        cancelled = cancelling.cancel(folder)
        ended.append(cancelled.as_json())
        if not args.json:
            for line in cancelled.lines():
                write_line(line)
    if args.json:
        _print_json(ended)
    return 0


def retry(args: argparse.Namespace) -> int:
    """Launch again what failed or was lost; 2 if runs failed once more."""
    from sae_sweeps.launching import retrying
    from sae_sweeps.record import status

    for folder in args.folder:
        status.read(folder)  # a wrong folder is told before anything starts
    return max([retrying.retry(folder, args.trust) for folder in args.folder])


def sync(args: argparse.Namespace) -> int:
    """Upload each sweep's offline W&B runs; 1 if some could not be."""
    from sae_sweeps.cli.mirrors import sync

    return sync(args.folder)


def dashboard(args: argparse.Namespace) -> int:
    """Make or renew the W&B workspace of each sweep."""
    from sae_sweeps.cli.mirrors import dashboard

    return dashboard(args.folder)


# --- The command line ----------------------------------------------------------------------


def _folders(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="+", help="a sweep's folder: outputs/NAME")


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="write one JSON document instead")


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    _folders(parser)
    _json(parser)
    parser.add_argument("--watch", action="store_true", help="renew it until the sweeps are over")


def _cancel_arguments(parser: argparse.ArgumentParser) -> None:
    _folders(parser)
    _json(parser)


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    _folders(parser)
    parser.add_argument(
        "--trust", action="store_true", help="run whatever code the folders name; read them first"
    )


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    _folders(parser)
    parser.add_argument(
        "--page", type=Path, metavar="FILE", help="where the page of all these sweeps goes instead"
    )


def _wait_arguments(parser: argparse.ArgumentParser) -> None:
    _folders(parser)
    parser.add_argument(
        "--timeout-minutes",
        type=_positive,
        default=math.inf,
        metavar="N",
        help="give up then, with exit code 1",
    )
    parser.add_argument(
        "--every-s", type=_positive, default=10.0, metavar="N", help="between two looks (10)"
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value > 0 and math.isfinite(value):
        return value
    raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")


VERBS: dict[
    str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
] = {
    "status": (STATUS_HELP, _status_arguments, status),
    "wait": ("Wait until each sweep is over, then draw its report.", _wait_arguments, wait),
    "cancel": (CANCEL_HELP, _cancel_arguments, cancel),
    "retry": (RETRY_HELP, _retry_arguments, retry),
    "report": (REPORT_HELP, _report_arguments, report),
    "sync": (SYNC_HELP, _folders, sync),
    "dashboard": (DASHBOARD_HELP, _folders, dashboard),
}
"""Per verb its help, whose first line sums it up, what arguments it takes, and what it does."""


PLAN = "plan"
"""What stands in front of a command that trains to have it told what that would take."""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: list[str]) -> int:
    """Run a verb; returns the exit code."""
    parser = Parser(prog="sae-sweeps")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, (text, add_arguments, _) in VERBS.items():
        plain = argparse.RawDescriptionHelpFormatter
        summary = text.splitlines()[0]
        add_arguments(verbs.add_parser(verb, help=summary, description=text, formatter_class=plain))
    try:
        args = parser.parse_args(argv)
        _guard(args.folder)
        code = VERBS[args.verb][2](args)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    except BrokenPipeError:  # the reader of `sae-sweeps status DIR | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _guard(folders: Sequence[Path]) -> None:
    """See to it that folders, which may be somebody else's, lead nowhere and run nothing.

    No module is found in them, even where the command is called in one; raises ConfigError.
    """
    from sae_sweeps.record.inspection import inspect

    for folder in folders:
        inspect(folder)
        home = folder.resolve()
        sys.path[:] = [p for p in sys.path if not Path(p or ".").resolve().is_relative_to(home)]


def unknown(word: str) -> str:
    """Refuse a first word that is neither a verb nor an option."""
    verbs = ", ".join([PLAN, *VERBS])
    guess = did_you_mean(word, [PLAN, *VERBS])
    return f"{word!r} is not a command ({verbs}) nor an option (key=value).{guess}"


def completes_overrides(line: str) -> bool:
    """Tell whether a command line being completed is Hydra's; offer verbs where one may stand."""
    words = line.split()[1:]
    if words and words[0] in VERBS:
        return False  # the shell completes file names
    if len(words) == 1 and not line.endswith(" "):
        known = [PLAN, *VERBS]
        sys.stdout.writelines(f"{verb}\n" for verb in known if verb.startswith(words[0]))
    elif words and words[0] == PLAN:  # what follows is completed as without it
        os.environ["COMP_LINE"] = line.replace(f" {PLAN} ", " ", 1)
    return True


def _print_json(document: object) -> None:
    sys.stdout.write(json.dumps(document, indent=1, allow_nan=False) + "\n")
