"""Lines for a terminal, with the evaluations of several models side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rayalign.evaluate.statistics import PairedDifference

WIDTH = 24
Row = tuple[str, list[str]]  # what it is, and a cell for each model


def side_by_side(names: Iterable[str], rows: Iterable[Row]) -> list[str]:
    """A line with the names, and one for each row."""
    lines = [("", list(names)), *rows]
    return [f"  {name:<{WIDTH}}" + "".join(f"{cell:>{WIDTH}}" for cell in cells) for name, cells in lines]


def interval(found: dict[str, Any], digits: int = 3) -> str:
    """`0.512 (0.480-0.544)`; only the mean where the ends are not known."""
    if found["low"] is None or found["high"] is None:
        return f"{found['mean']:.{digits}f}"
    dash = "-" if found["low"] >= 0 else " to "
    return f"{found['mean']:.{digits}f} ({found['low']:.{digits}f}{dash}{found['high']:.{digits}f})"


def difference(second: str, first: str, found: PairedDifference, *, of: str, by: str = "prompt") -> str:
    """One line: how much more `second` has of something, paired, and whether that is shown."""
    told = found.difference
    if not found.excludes_zero:
        verdict = "; 0 is within it, so neither is shown to be better" if told.low <= told.high else ""
    else:
        verdict = ""
    ends = f"95% interval {told.low:+.3f} to {told.high:+.3f}{verdict}" if told.num > 1 else "of one only"
    return f"  {second} minus {first}, {by} by {by}, of {of}: {told.mean:+.3f} ({ends})"
