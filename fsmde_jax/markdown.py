"""Markdown tables: every report of the package writes its own through this."""

from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table's lines, without a line break at the end.

    Args:
      head: the columns' titles.
      rows: as many cells each.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
