"""Rich's console, on which no text of a file commands the terminal."""

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from sae_sweeps.errors import visible


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
