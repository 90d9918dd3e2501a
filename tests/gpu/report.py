"""The one-page table of a run on a GPU."""

from collections.abc import Mapping, Sequence
from typing import Any

from .agenda import AS_CONFIGURED, KERNELS, Part
from .figures import Figures, Grid, is_number

WIDTH = 100


def figures_in(document: Mapping[str, Any]) -> Figures:
    """What a document's parts found."""
    return Figures({part["name"]: part["figures"] for part in document["parts"]})


def table(document: Mapping[str, Any], parts: Sequence[Part]) -> str:
    """All of it in plain text: the machine, what became of each part, goals, and grids."""
    figures = figures_in(document)
    lines = [*head(document), "", *became(document), "", *goals(document), "", KERNELS]
    for part in parts:
        if part.grid and (rows := grid(figures, part.name, part.grid)):
            aside = f" ({part.grid.aside})" if part.grid.aside else ""
            lines += ["", f"{part.name}: {part.grid.figure}{aside}", *rows]
    if rows := beside_ours(figures):
        lines += ["", "peers' steps over ours, as configured", *rows]
    return "\n".join(lines) + "\n"


def head(document: Mapping[str, Any]) -> list[str]:
    """What ran where."""
    machine = next(iter(figures_in(document).rows("machine", what="machine")), {})
    names = ("gpu", "driver", "torch", "cuda", "python", "triton")
    code = document["code"]
    # A copy without git is no newer than its wheels only if nobody changed it since.
    commit = code.get("commit") or f"unknown, wheels of {code['packed'].get('commit')}"
    edited = " with changes" if code.get("edited") else ""
    kind = "A rehearsal, whose figures mean nothing" if document["rehearsal"] else "A run"
    return [
        f"{kind}: {document['started']}, {document['seconds']:.0f} s, commit {commit}{edited}",
        ", ".join(f"{name} {machine.get(name)}" for name in names),
    ]


def became(document: Mapping[str, Any]) -> list[str]:
    """A line for each part, and one for whatever went wrong in it."""
    lines = list[str]()
    for part in document["parts"]:
        times = f"{part['seconds']:7.1f} s of {part['limit_s']:.0f}"
        lines.append(f"{part['name']:<12}{part['state']:<16}{times}, {len(part['figures'])} rows")
        errors = [str(row["error"]) for row in part["figures"] if "error" in row]
        for error in [*errors[:3], part.get("error", "")]:
            if error.strip():
                lines.append(f"    {error.strip().splitlines()[-1]}"[:WIDTH])
    return lines


def goals(document: Mapping[str, Any]) -> list[str]:
    """A line for each goal."""
    lines = list[str]()
    for goal in document["goals"]:
        found = goal["figure"]
        shown = "-" if found is None else f"{found:.4g}"
        lines.append(f"{goal['goal']:<62}{shown:>10}  {goal['bound']:<8}{goal['verdict']}")
    return lines


def grid(figures: Figures, part: str, grid: Grid) -> list[str]:
    """A line for each thing that was measured, with a column for each size."""
    cells = dict[tuple[str, str], str]()
    for row in figures.rows(part):
        found, aside = row.get(grid.figure), row.get(grid.aside or "")
        if is_number(found):
            more = f" ({aside:.3g})" if is_number(aside) else ""
            cells[str(row.get(grid.by)), str(row.get(grid.across))] = f"{found:.4g}{more}"
    return tabulated(cells)


def beside_ours(figures: Figures) -> list[str]:
    """How many times our own step of the same method a peer's takes, as we are configured."""
    cells = dict[tuple[str, str], str]()
    for row in figures.rows("peers"):
        where = {"method": row.get("method"), "size": row.get("size"), "aux": AS_CONFIGURED}
        own = figures.one("steps", "ms", **where)
        if own and is_number(row.get("ms")):
            cells[str(row.get("step")), str(row.get("size"))] = f"{row['ms'] / own:.3g} ×"
    return tabulated(cells)


def tabulated(cells: Mapping[tuple[str, str], str]) -> list[str]:
    """A line for each first word of cells, a column for each second one."""
    columns = list(dict.fromkeys(column for _, column in cells))
    names = list(dict.fromkeys(name for name, _ in cells))
    lines = [" " * 52 + "".join(f"{column:>16}" for column in columns)] if cells else []
    for name in names:
        shown = "".join(f"{cells.get((name, column), '-'):>16}" for column in columns)
        lines.append(f"{name:<52}{shown}")
    return lines
