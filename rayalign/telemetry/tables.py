"""Samples as tables, and a table as the Markdown that TensorBoard shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | float | int | None

MAX_CELL = 4000  # characters of a cell of Markdown; trackers that keep tables get all


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of plain values, such as {prompt, response, reward}. Raises ValueError for a row of another length."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(self.columns)} columns")

    def by_column(self) -> dict[str, list[Cell]]:
        """The values of each column."""
        return {name: [row[place] for row in self.rows] for place, name in enumerate(self.columns)}


def markdown(table: Table) -> str:
    """A table of Markdown that shows text as it is: no markup in a cell is acted on."""
    lines = [_line(table.columns), "|" + " --- |" * len(table.columns)]
    return "\n".join([*lines, *(_line(row) for row in table.rows)])


def _line(cells: Sequence[Cell]) -> str:
    return "| " + " | ".join(_shown(cell) for cell in cells) + " |"


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if not isinstance(cell, str):
        return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    text = cell if len(cell) <= MAX_CELL else cell[: MAX_CELL - 4] + " ..."
    return "<br>".join("".join(_escaped(letter) for letter in line) for line in text.splitlines())


def _escaped(letter: str) -> str:
    """As an entity, where Markdown or HTML would read more into it than a letter."""
    return letter if letter.isalnum() or letter in " .,:;?!'\"()/" or not letter.isascii() else f"&#{ord(letter)};"
