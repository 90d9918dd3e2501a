"""The Hydra application: what becomes of a command that trains."""

import os
import re
import sys
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf

from sae_sweeps.config.check import checked
from sae_sweeps.config.groups import GLOBAL, NAMES
from sae_sweeps.config.history import MOVED, moved
from sae_sweeps.config.options import RunConfig
from sae_sweeps.config.rules import obey
from sae_sweeps.errors import ConfigError, did_you_mean, one_line
from sae_sweeps.launching.alone import train_alone
from sae_sweeps.launching.compose import choices_of
from sae_sweeps.launching.errors import is_users, line
from sae_sweeps.launching.out import complain
from sae_sweeps.launching.summary import note
from sae_sweeps.launching.sweeper import PointsSweeperBase
from sae_sweeps.planning.asked import wish

HERE = Path(__file__).resolve().parents[1]
CONF = next(path for path in (HERE / "conf", HERE.parent / "conf") if path.is_dir())
"""Inside the package in a wheel, beside it in a checkout."""

NO_OPTION = r"null|true|false|[-\d.]*|.*\.\..*|[\[{].*"
"""What is no option file's name; Hydra would read a list of them as one merged option."""
DEEPEST = 20
"""Brackets in brackets; the parsers of Hydra and OmegaConf recurse, and run out of stack."""


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def app(cfg: DictConfig) -> None:
    """Train one run as a pack of one: what stock launchers call for each point."""
    if wish() is not None:
        raise ConfigError("hydra/launcher: only of local and slurm there is a plan.")
    choices = choices_of(OmegaConf.structured(HydraConfig.get()))
    config = checked(cfg, choices)
    obey(config)
    train_alone(RunConfig.of(config), choices)


def run(arguments: list[str]) -> int:
    """Hand a command to Hydra; returns the exit code: 0 fine, 1 refused, 2 some runs failed."""
    try:
        arguments = arranged(arguments)
    except ConfigError as error:
        complain(line(error))
        return 1
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    with hydra_as_library(arguments), composed_once(), planned_by_us():
        try:
            app()
        except KeyboardInterrupt:
            complain("interrupted")
            return 130
        except BrokenPipeError:  # the reader of `sae-sweeps --help | head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except Exception as error:
            if wants_traceback or not is_users(error):
                raise
            complain(line(error))
            return 1
    return 0


def arranged(arguments: list[str]) -> list[str]:
    """Put overrides before flags and ask for a multirun; raises ConfigError for a wrong flag.

    Always a multirun: so a single run is a sweep of one point, and Hydra reports a mistake in the
    config, where else it would call a command with axes ambiguous.
    """
    parser = get_args_parser()
    parser.error = _refuse
    args, rest = parser.parse_known_args(arguments)
    for word in rest:
        if word.startswith("-"):
            flags = [flag for action in parser._actions for flag in action.option_strings]
            hint = did_you_mean(word, flags) or " Options have no dashes: k=16."
            raise ConfigError(f"{one_line(repr(word))} is not a flag.{hint}")
    if wish() is not None and (args.run or args.experimental_rerun):
        raise ConfigError("only of a sweep there is a plan: leave out --run and what is like it.")
    overrides = [word for word in arguments if word in [*args.overrides, *rest]]
    flags = [word for word in arguments if word not in overrides and word != "--"]
    if args.shell_completion and "COMP_LINE" not in os.environ and "query" in str(overrides):
        raise ConfigError(f"{overrides[0]!r} is for shells to ask: COMP_LINE is not set.")
    for word in overrides:
        _refuse_word(word)
    overrides = [_settled(word) for word in overrides]
    # Overrides first: `--info`, whose value may be left out, would take one.
    parser.parse_known_args([*overrides, *flags])
    others = (args.run, args.cfg, args.info, args.help, args.hydra_help, args.shell_completion)
    if any(others):
        return [*overrides, *flags]
    multirun = [] if args.multirun else ["--multirun"]
    return [*loosened(overrides), *multirun, *flags]


def _refuse(message: str) -> NoReturn:
    raise ConfigError(one_line(message))


def _refuse_word(word: str) -> None:
    """Refuse what Hydra would not, or in words that do not say which option is meant."""
    key, equals, value = word.partition("=")
    shown = one_line(repr(word))
    if not key.lstrip("+~") or not (equals or word.startswith("~")):
        raise ConfigError(f"{shown} is not an option: write key=value, without spaces (k=4,8).")
    if max(accumulate((c in "[{(") - (c in "]})") for c in word)) > DEEPEST:
        raise ConfigError(f"{shown} is nested too deeply.")
    if key.lstrip("+") in (*NAMES, *GLOBAL) and re.fullmatch(NO_OPTION, value):
        raise ConfigError(f"{key} is {value or 'empty'}, expected the name of an option.")


def _settled(word: str) -> str:
    """Write an option that has moved where it is now, and say so once all else is in order."""
    now = moved(word)
    if now != word:
        before, after = (text.partition("=")[0].lstrip("+~") for text in (word, now))
        note(f"{before} is {after} now, and taken for it")
    return now


@contextmanager
def hydra_as_library(arguments: Sequence[str]) -> Generator[None, None, None]:
    """Let Hydra read these arguments, and raise errors instead of printing them and exiting."""
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        with warnings.catch_warnings():
            # Each tells of a mistake, such as a search path that is not there.
            warnings.filterwarnings("error", module="hydra")
            yield
    finally:
        sys.argv = argv
        if full_error is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


@contextmanager
def composed_once() -> Generator[None, None, None]:
    """Spare Hydra to compose the whole config only to learn its mode, a fifth of a short command.

    It is a multirun (see `arranged`), unless the user asks for another mode, which Hydra refuses.
    """
    get_mode = Hydra.get_mode

    def mode(self: Hydra, config_name: str | None, overrides: list[str]) -> Any:
        asked = any("hydra.mode" in word for word in overrides)
        return get_mode(self, config_name, overrides) if asked else None

    Hydra.get_mode = mode
    try:
        yield
    finally:
        Hydra.get_mode = get_mode


@contextmanager
def planned_by_us() -> Generator[None, None, None]:
    """Where only a plan is asked for, refuse sweepers of others, which write files first."""
    instantiate = Plugins.instantiate_sweeper

    def ours(self: Plugins, **given: Any) -> Sweeper:
        sweeper = instantiate(self, **given)
        if wish() is not None and not isinstance(sweeper, PointsSweeperBase):
            raise ConfigError("hydra/sweeper: only of points there is a plan.")
        return sweeper

    Plugins.instantiate_sweeper = ours
    try:
        yield
    finally:
        Plugins.instantiate_sweeper = instantiate


def loosened(arguments: Sequence[str]) -> list[str]:
    """Write an option of a group, `allocator.k=5`, as an axis of one value.

    Hydra composes the config without axes first. An option that only the swept methods have
    would be refused there, although every point has it; as an axis it is judged in each point.
    """
    return [_loosened(argument) for argument in arguments]


def _loosened(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if key in MOVED.values():  # they have always been in the base config
        return argument
    if not equals or not re.fullmatch(rf"({'|'.join(NAMES)})\.[\w.]+", key):
        return argument
    axis = f"{key}=choice({value})"
    try:
        parse = OverridesParser.create().parse_override
        before, after = parse(argument), parse(axis)
    except HydraException:
        return argument
    if before.type is not OverrideType.CHANGE or before.is_sweep_override():
        return argument
    same = list(after.sweep_string_iterator()) == [before.get_value_element_as_str()]
    return axis if same else argument
