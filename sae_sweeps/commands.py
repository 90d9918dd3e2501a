"""The companion commands: verbs that look at a sweep's folder. None of them needs Hydra."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from sae_sweeps.run import ConfigError, did_you_mean, one_line


def report(args: argparse.Namespace) -> int:
    """Draw the report of each folder again, from the runs' result.json."""
    for folder in args.folder:
        if not (folder / "runs").is_dir():
            raise ConfigError(f"{folder} is not a sweep's folder: it has no runs/.")
    from sae_sweeps.pareto.report import report

    for folder in args.folder:
        report(folder.absolute())
    return 0


def _report_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, nargs="+", help="a sweep's folder: outputs/NAME")


VERBS: dict[
    str, tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
] = {
    "report": ("draw a sweep's report again", _report_arguments, report),
}
"""Per verb its help, what arguments it takes, and what it does."""


class Parser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def main(argv: list[str]) -> int:
    """Run a verb; returns the exit code."""
    parser = Parser(prog="sae-sweeps")
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, (text, add_arguments, _) in VERBS.items():
        add_arguments(verbs.add_parser(verb, help=text, description=text))
    try:
        args = parser.parse_args(argv)
        return VERBS[args.verb][2](args)
    except ConfigError as error:
        sys.stderr.write(f"sae-sweeps: {one_line(error)}\n")
        return 1


def unknown(word: str) -> str:
    """Refuse a first word that is neither a verb nor an option."""
    verbs = ", ".join(VERBS)
    guess = did_you_mean(word, VERBS)
    return f"{word!r} is not a command ({verbs}) nor an option (key=value).{guess}"


def completes_overrides(line: str) -> bool:
    """Tell whether a command line being completed is Hydra's; offer verbs where one may stand."""
    words = line.split()[1:]
    if words and words[0] in VERBS:
        return False  # the shell completes file names
    if len(words) == 1 and not line.endswith(" "):
        sys.stdout.writelines(f"{verb}\n" for verb in VERBS if verb.startswith(words[0]))
    return True
