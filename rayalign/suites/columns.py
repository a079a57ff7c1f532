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
    width = max(WIDTH, *(2 + len(cell) for _, cells in lines for cell in cells))
    label = max(WIDTH, *(len(name) for name, _ in lines))
    return [f"  {name:<{label}}" + "".join(f"{cell:>{width}}" for cell in cells) for name, cells in lines]


def interval(found: dict[str, Any], digits: int = 3) -> str:
    """`0.512 (0.480-0.544)`; only the mean where the ends are not known."""
    if found["low"] is None or found["high"] is None:
        return f"{found['mean']:.{digits}f}"
    dash = "-" if found["low"] >= 0 else " to "
    return f"{found['mean']:.{digits}f} ({found['low']:.{digits}f}{dash}{found['high']:.{digits}f})"


def unlike(first: dict[str, Any], second: dict[str, Any], *, but: tuple[str, ...] = ("seed",)) -> str:
    """In a few words, the settings in which two evaluations differ, those in `but` left out; empty where they agree."""
    names = [name for name in {**first, **second} if name not in but and first.get(name) != second.get(name)]
    return ", ".join(f"{name} {_shown(second.get(name))} and not {_shown(first.get(name))}" for name in names)


def seeds(name: str, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """A line where the answers of a pair were drawn with other seeds, which a difference allows."""
    if first.get("seed") == second.get("seed"):
        return []
    return [f"  {name}: drawn with seed {second.get('seed')}, the first with seed {first.get('seed')}"]


def _shown(value: Any) -> str:
    text = "unknown" if value is None else str(value)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."


def difference(second: str, first: str, found: PairedDifference, *, of: str, by: str = "prompt") -> str:
    """One line: how much more `second` has of something, paired, and whether that is shown."""
    told = found.difference
    if not found.excludes_zero:
        verdict = "; 0 is within it, so neither is shown to be better" if told.low <= told.high else ""
    else:
        verdict = ""
    ends = f"95% interval {told.low:+.3f} to {told.high:+.3f}{verdict}" if told.num > 1 else "of one only"
    return f"  {second} minus {first}, {by} by {by}, of {of}: {told.mean:+.3f} ({ends})"
