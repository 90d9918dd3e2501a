"""How a user's mistake is worded."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A user's mistake; its message is one line."""


LINE_LENGTH = 380
"""What a message is cut to, in characters: a value typed may be as long as a book."""


def visible(text: str) -> str:
    r"""Write as escapes what a terminal would obey or not show: ESC becomes `\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def without_frames(error: Exception) -> Exception:
    """The error, and what led to it, without the frames that it passed and what these hold."""
    link: BaseException | None = error
    while link is not None:
        link = link.with_traceback(None).__context__
    return error


def one_line(text: object) -> str:
    """Fold white space, leave out the middle of what is too long, and show control characters."""
    line = visible(" ".join(str(text).split()))
    if len(line) <= LINE_LENGTH:
        return line
    return f"{line[: 2 * LINE_LENGTH // 3]} ... {line[-LINE_LENGTH // 3 :]}"


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """End a complaint with the nearest valid name, where there is one."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
