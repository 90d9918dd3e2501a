"""Shows the state of a sweep in the terminal, one run a row."""

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sae_sweeps.record.status import RunStatus, SweepStatus, shown
from sae_sweeps.system.terminal import ENDLESS

COLOURS = {
    "done": "green",
    "running": "cyan",
    "pending": "yellow",
    "preempted": "magenta",
    "failed": "red",
    "lost": "red",
}
ROOM_FOR_REASONS = 40
"""Columns that a terminal must leave beside the figures, or reasons stand below the table."""


def render(status: SweepStatus, console: Console) -> RenderableType:
    """Draw a sweep's table, its counts and what to do next."""
    unlimited = console.options.update_width(ENDLESS)
    bare = console.measure(_table(status, reasons=False), options=unlimited).maximum
    told = [run for run in status.runs if run.reason]
    beside = bare + ROOM_FOR_REASONS <= console.width
    parts: list[RenderableType] = [_table(status, reasons=beside and bool(told))]
    if not beside:
        parts += [Text(f"{run.name} {run.state}: {run.reason}") for run in told]
    parts.append(Text(summary(status), style="bold"))
    if status.problem:
        text = f"SLURM could not be asked, so its jobs are judged by their files: {status.problem}"
        parts.append(Text(text, style="yellow"))
    counts = status.counts
    if counts["failed"] or counts["lost"]:
        text = f"train what failed or was lost: sae-sweeps retry {shown(status.folder)}"
        parts.append(Text(text, no_wrap=True, overflow="ignore"))  # whole, to be copied
    return Group(*parts)


def summary(status: SweepStatus) -> str:
    """Count the runs: `pareto: 24 runs: 12 done, 8 running, 4 pending`."""
    total = len(status.runs)
    counts = [f"{count} {state}" for state, count in status.counts.items() if count]
    return f"{status.name}: {total} {'run' if total == 1 else 'runs'}: {', '.join(counts)}"


def _table(status: SweepStatus, reasons: bool) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("method", overflow="fold")
    for heading in ("k", "seed"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for heading in ("%", "tokens", "tokens/s", "L0", "FVU"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("where", overflow="fold")
    if reasons:
        table.add_column("reason", overflow="fold")
    for run in status.runs:
        cells = _cells(run)
        table.add_row(*cells, *([Text(run.reason)] if reasons else []))
    return table


def _cells(run: RunStatus) -> list[Text]:
    percent = 100 * run.tokens // max(run.total_tokens, 1)
    figures = [(run.tokens_per_s, ",.0f"), (run.l0, ".2f"), (run.fvu, ".4f")]
    return [
        Text(run.label),
        Text(f"{run.k:g}"),
        Text(str(run.seed)),
        Text(run.state, style=COLOURS[run.state]),
        Text(f"{percent}"),
        Text(f"{run.tokens:,}"),
        *(Text("-" if value is None else format(value, form)) for value, form in figures),
        Text(" ".join(word for word in (run.job, run.node) if word)),
    ]
