"""Rich's console, on which no text of a file commands the terminal."""

import os
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sae_sweeps.errors import visible

ENDLESS = 10_000
"""Columns of what is no terminal."""


class Terminal(Console):
    """Writes no control characters but rich's own, for colours and moves.

    A name or an error of a folder may hold others, which would set a window's title or the
    clipboard: they are shown as escapes.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """Render as rich does, and show control characters in texts."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=_visible(segment.text))


def _visible(text: str) -> str:
    return "\n".join(map(visible, text.split("\n")))


def console() -> Console:
    """Make the console for standard output; in a pipe no line is cut or folded."""
    console = Terminal()
    asked = console.is_terminal or "COLUMNS" in os.environ
    return console if asked else Terminal(width=ENDLESS)
