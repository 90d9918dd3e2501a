"""A user's mistake in one line; errors of our own keep their traceback."""

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from sae_sweeps.config import omegaconf_line
from sae_sweeps.run import ConfigError, did_you_mean, one_line


def is_users(error: BaseException) -> bool:
    """Tell complaints about input, ours and the libraries', from faults of the code."""
    if isinstance(error, ConfigError | HydraException | OmegaConfBaseException):
        return True
    # Hydra raises bare ValueErrors too, for `method=null` among others.
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return module.partition(".")[0] in ("hydra", "omegaconf")


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
        return f"cannot read {error.override!r}: {one_line(str(error).splitlines()[0])}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    if isinstance(cause, OmegaConfBaseException):
        return omegaconf_line(cause)
    return one_line(error)


def last_line(error: BaseException) -> str:
    """Word a run's failure by the last line of its message."""
    lines = [text for text in str(error).splitlines() if text.strip()]
    if isinstance(error, ConfigError):
        return one_line(error)
    name = type(error).__name__
    return f"{name}: {one_line(lines[-1])}" if lines else name
