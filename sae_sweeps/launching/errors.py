"""A user's mistake in one line; errors of our own keep their traceback."""

import re
from traceback import walk_tb

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config.check import omegaconf_line
from sae_sweeps.errors import ConfigError, did_you_mean, one_line

LIBRARIES = ("hydra", "omegaconf", "antlr4")
OURS = ("sae_sweeps", "hydra_plugins")


def is_users(error: BaseException) -> bool:
    """Tell complaints about input, ours and the libraries', from faults of the code."""
    if isinstance(error, ConfigError | HydraException | OmegaConfBaseException):
        return True
    # Hydra raises bare ValueErrors too, for `method=null` among others, and lets through what
    # Python raises, for brackets nested too deeply or a name too long for a file.
    names = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    packages = [name.partition(".")[0] for name in names]
    raised = [package for package in packages if package in (*LIBRARIES, *OURS)]
    return bool(raised) and raised[-1] in LIBRARIES


def line(error: BaseException) -> str:
    """Word a complaint in one line, with the option's path where there is one."""
    for ours in (error, error.__cause__):  # a plugin's own complaint arrives wrapped
        if isinstance(ours, ConfigError):
            return one_line(ours)
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = (error.missing_cfg_file or "").rpartition("/")
        options = sorted(error.options)
        guess = did_you_mean(option, options)
        return f"{group} has no option {option!r}, expected one of {', '.join(options)}.{guess}"
    if isinstance(error, OverrideParseException):
        return f"cannot read {one_line(repr(error.override))}: {_why_unreadable(error)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return omegaconf_line(cause)
    return one_line(error) or type(error).__name__


def _why_unreadable(error: OverrideParseException) -> str:
    """Pick the cause from Hydra's several lines, without the parser's own words."""
    lines = str(error).splitlines()
    if lines[0].startswith("LexerNoViableAlt"):
        return "special characters must stand in quotes: key=\"'text'\"."
    wrapped = lines[0].startswith("Error parsing override") and len(lines) > 1
    text = re.sub(r"^\w+ while evaluating| expecting .*", "", lines[1 if wrapped else 0])
    return one_line(text.replace("'<EOF>'", "its end"))


def last_line(error: BaseException) -> str:
    """Word a run's failure by the last line of its message."""
    lines = [text for text in str(error).splitlines() if text.strip()]
    if isinstance(error, ConfigError):
        return one_line(error)
    name = type(error).__name__
    return f"{name}: {one_line(lines[-1])}" if lines else name
