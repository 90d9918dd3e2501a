"""`sae-sweeps plan`: what a command would do and take, of which nothing is done."""

import argparse

from sae_sweeps.cli.commands import PLAN, VERBS, Parser
from sae_sweeps.cli.help_texts import PLAN_HELP
from sae_sweeps.errors import ConfigError
from sae_sweeps.launching.out import complain
from sae_sweeps.planning.asked import Asked, asked
from sae_sweeps.planning.gpus import GPUS

FLAG = "--dry-run"
"""What users of other tools write instead of `plan`."""


def main(arguments: list[str]) -> int:
    """Tell what the command without `plan` in front would do; returns the exit code."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="sae-sweeps plan", description=PLAN_HELP, formatter_class=plain)
    parser.usage = "sae-sweeps plan [--gpu NAME] [--json] [group=option] [option=value] ..."
    names = ", ".join(GPUS)
    parser.add_argument("--gpu", metavar="NAME", choices=GPUS, help=f"times for one of {names}")
    parser.add_argument("--json", action="store_true", help="write one JSON document instead")
    try:
        own, command = parser.parse_known_args(arguments)
    except ConfigError as error:
        complain(str(error))
        return 1
    if command[:1] and command[0] in VERBS:
        complain(f"there is no plan of {command[0]}, only of a command that trains")
        return 1
    from sae_sweeps.cli import app

    token = asked.set(Asked(own.gpu, own.json))
    try:
        return app.run(command)
    finally:
        asked.reset(token)


def asked_for(arguments: list[str]) -> list[str] | None:
    """Give the arguments of a plan, if one is asked for: `plan` in front, or `--dry-run`."""
    if arguments[:1] == [PLAN]:
        return [word for word in arguments[1:] if word != FLAG]
    if FLAG in arguments:
        return [word for word in arguments if word != FLAG]
    return None
