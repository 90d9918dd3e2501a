"""Tables of the engine benchmark's report, and verdicts in their cells."""


def grid(head: list[str], cells: list[list[str]]) -> list[str]:
    """Lines of a table."""
    lines = [head, ["---"] * len(head), *cells]
    return ["| " + " | ".join(line) + " |" for line in lines]


def verdict(value: float, wanted: float | None, at_least: bool) -> str:
    """What is wanted of `value`, and whether it is so."""
    if wanted is None:
        return ""
    kept = value >= wanted if at_least else value <= wanted
    return f"{'≥' if at_least else '≤'} {wanted:g}: {'yes' if kept else 'no'}"
