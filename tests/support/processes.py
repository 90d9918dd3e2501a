"""The processes that a process has started, as Linux tells them."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Give the living ones that it started itself, and none if it is gone."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, task.read_text().split())
        except OSError:
            continue
    return [child for child in found if lives(child)]


def family(pid: int) -> list[int]:
    """Give those, and theirs, and so on."""
    return [member for child in children(pid) for member in (child, *family(child))]


def lives(pid: int) -> bool:
    """True if there is such a process, and it has not ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
