"""What an option's annotation may say of it beside its type and its bounds.

`k: Annotated[float, Gt(0), AtMost("d_sae")]`: bounds are those of annotated-types. Annotations are
read from source (see `config.signature`), so a mark's argument is a plain constant.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Birth:
    """What the code did before the option existed: every option needs it that comes later.

    Stored configs without the option get this value, and a run that has it keeps the identity that
    it had without. The default in YAML may be another one. Text such as `${share:0.05}` is that
    share of training.tokens.
    """

    value: bool | int | float | str | None


@dataclass(frozen=True, init=False)
class AtMost:
    """The option may not exceed others, where a config has them.

    `AtMost("d_sae", "training.tokens")` names them by dotted path, `AtMost(".p_end_tokens")` one of
    the same node.
    """

    others: tuple[str, ...]

    def __init__(self, *others: str) -> None:
        object.__setattr__(self, "others", others)


@dataclass(frozen=True)
class Alias:
    """A value that came later and has the identity of another: `Alias("auto", 16)`.

    What runs made with the other are found again when a default becomes the new one, of which the
    other is a case. Which case it is, the device decides, and a run's log says.
    """

    value: str
    of: bool | int | float | str


@dataclass(frozen=True)
class Code:
    """What the option holds is run, or says how: from a folder it needs the user's word."""


@dataclass(frozen=True)
class Idle:
    """The option cannot change a run's weights, and is no part of its identity."""
