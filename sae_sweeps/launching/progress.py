"""One live display of a sweep: an overall bar, and the runs being trained with their L0 and FVU."""

import logging
import threading
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, field

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sae_sweeps.launching.out import write_line
from sae_sweeps.system.terminal import Terminal

LINE_EVERY_S = 10.0
REFRESHES_PER_S = 2
ROWS_SHOWN = 12


@dataclass
class Row:
    """One run of the pack being trained."""

    label: str
    tokens: int = 0
    metrics: dict[str, float] = field(default_factory=dict[str, float])
    status: str = "training"


class Display(ABC):
    """What training tells while it goes, from several threads; a run is its index in the pack."""

    def __init__(self, runs: int, tokens: int) -> None:
        """Take what lies ahead: runs, and tokens summed over them."""
        self.runs, self.tokens = runs, tokens
        self.ended, self.done, self.failed = 0, 0, 0
        self.before = 0
        """Tokens of `done` that were trained before anybody looked."""
        self.share = 0
        self.lock = threading.Lock()
        self.rows: list[Row] = []
        self.text = ""
        self.since: float | None = None

    def started(self, total_tokens: int, titles: list[str]) -> None:
        """Begin a pack of runs, whose tokens sum to `total_tokens`."""
        self.rows = [Row(title) for title in titles]
        self.share = total_tokens // max(len(titles), 1)
        self.text = "training"
        self.since = self.since or time.monotonic()
        self.changed()

    def advance(self, run: int, tokens: int) -> None:
        """Count `tokens` more for a run."""
        with self.lock:
            self.rows[run].tokens += tokens
            self.done += tokens
            self.changed()

    def resumed(self, run: int, tokens: int) -> None:
        """Count `tokens` that an earlier attempt trained; they say nothing of the speed."""
        with self.lock:
            self.before += tokens
        self.advance(run, tokens)

    def metrics(self, run: int, figures: dict[str, float]) -> None:
        """Show a run's newest numbers: `l0`, `fvu`."""
        with self.lock:
            self.rows[run].metrics |= figures
            self.changed()

    def finished(self, run: int, status: str) -> None:
        """End a run; what a failed one leaves untrained is taken off the whole."""
        with self.lock:
            row = self.rows[run]
            row.status = status
            self.ended += 1
            if status == "failed":
                self.failed += 1
                self.tokens -= max(self.share - row.tokens, 0)
            self.changed()

    def stage(self, text: str) -> None:
        """Say what is going on, such as loading a model."""
        self.text = text
        self.changed(at_once=True)

    def rate(self) -> float:
        """Tokens per second, over all runs, since training began."""
        seconds = time.monotonic() - self.since if self.since else 0.0
        return (self.done - self.before) / seconds if seconds > 0 else 0.0

    def figures(self) -> str:
        """Say in words how far the sweep is."""
        parts = [f"{self.ended} of {self.runs} runs"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        rate = self.rate()
        if rate:
            left = max(self.tokens - self.done, 0) / rate
            parts += [f"{rate:,.0f} tokens/s", f"{duration(left)} left"]
        return ", ".join(parts)

    @abstractmethod
    def changed(self, at_once: bool = False) -> None:
        """Show the present state, now or soon."""

    def say(self, text: str) -> None:
        """Write a line that stays."""
        write_line(text, error=True)

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        """Show the last state."""
        self.changed(at_once=True)


class Quiet(Display):
    """Shows nothing."""

    def changed(self, at_once: bool = False) -> None:
        """Do nothing."""


class Lines(Display):
    """Plain lines, seldom enough for a log file."""

    def __init__(self, runs: int, tokens: int, every_s: float = LINE_EVERY_S) -> None:
        super().__init__(runs, tokens)
        self.every_s = every_s
        self.last = 0.0

    def changed(self, at_once: bool = False) -> None:
        """Write a line if the last one is old or a new stage begins."""
        now = time.monotonic()
        if at_once or now - self.last >= self.every_s:
            self.last = now
            percent = 100 * self.done // max(self.tokens, 1)
            self.say(f"{percent:3d} %, {self.figures()}: {self.text}")


class Bar(Display):
    """A bar and a table, redrawn in place by a thread of rich's."""

    def __init__(self, runs: int, tokens: int, console: Console | None = None) -> None:
        super().__init__(runs, tokens)
        self.live = Live(
            console=console or Terminal(stderr=True),
            get_renderable=self.render,
            refresh_per_second=REFRESHES_PER_S,
            transient=True,
        )

    def changed(self, at_once: bool = False) -> None:
        """Leave drawing to the thread, so that training never waits for a terminal."""

    def render(self) -> RenderableType:
        """Draw the present state."""
        line = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(self.tokens, 1), completed=self.done, width=30)
        percent = 100 * self.done // max(self.tokens, 1)
        line.add_row(bar, f"{percent} %", self.figures())
        return Group(line, self.table()) if self.rows else Group(line, Text(self.text))

    def table(self) -> RenderableType:
        """Draw the runs of the pack, those in training first."""
        table = Table(box=None, padding=(0, 2, 0, 0))
        table.add_column(Text(self.text))
        for title in ("tokens", "L0", "FVU"):
            table.add_column(title, justify="right")
        rows = sorted(self.rows, key=lambda row: row.status != "training")
        for row in rows[:ROWS_SHOWN]:
            numbers = [f"{row.metrics[key]:.4g}" if key in row.metrics else "" for key in KEYS]
            name = row.label if row.status == "training" else f"{row.label} ({row.status})"
            table.add_row(Text(name), f"{row.tokens:,}", *numbers)
        if len(rows) > ROWS_SHOWN:
            table.add_row(f"and {len(rows) - ROWS_SHOWN} more")
        return table

    def say(self, text: str) -> None:
        """Write a line above the bar."""
        with suppress(OSError):  # the terminal is gone
            self.live.console.print(Text(text), soft_wrap=True)

    def __enter__(self) -> "Display":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self.live.stop()


KEYS = ("l0", "fvu")


class Messages(logging.Handler):
    """Passes what the package's modules log on to the user; runs log into their own files."""

    def __init__(self, display: Display) -> None:
        super().__init__(logging.INFO)
        self.display = display

    def emit(self, record: logging.LogRecord) -> None:
        """Show one message."""
        self.display.say(record.getMessage())

    def __enter__(self) -> None:
        logger = logging.getLogger("sae_sweeps")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        logging.getLogger("sae_sweeps").removeHandler(self)


def make(progress: str, runs: int, tokens: int) -> Display:
    """Choose the display: `off`, or what suits the terminal."""
    if progress == "off":
        return Quiet(runs, tokens)
    return Bar(runs, tokens) if Console(stderr=True).is_terminal else Lines(runs, tokens)


def duration(seconds: float) -> str:
    """Write seconds as `1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
