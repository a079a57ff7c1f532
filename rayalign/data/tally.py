"""Counts of what became of the rows, so that none disappears without a word."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """How many rows were used, left out and cut, by reason, and where each reason was met first.

    One tally may go with its rows from step to step (shapes, then lengths): what was left out adds up, and
    `num_used` is what came through the last step.
    """

    num_used: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    first_places: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, place: object) -> None:
        """Counts a row that is not used."""
        self.left_out[reason] += 1
        self.first_places.setdefault(reason, str(place))

    def cut_row(self, reason: str, place: object) -> None:
        """Counts a row that is used, but shortened; it counts as used besides."""
        self.cut[reason] += 1
        self.first_places.setdefault(reason, str(place))

    def part(self) -> Tally:
        """A tally for some of the rows: what it leaves out and cuts counts here too, and it has a `num_used` of its own."""
        return Tally(left_out=self.left_out, cut=self.cut, first_places=self.first_places)

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.left_out or self.cut)

    def __str__(self) -> str:
        """One sentence: `2306 rows used, 6 left out (6 x empty response, first at hh.jsonl:87)`."""
        parts = [f"{self.num_used} rows used"]
        for word, counts in (("left out", self.left_out), ("cut", self.cut)):
            if counts:
                reasons = (
                    f"{n} x {reason}, first at {self.first_places[reason]}" for reason, n in counts.items()
                )
                parts.append(f"{counts.total()} {word} ({'; '.join(reasons)})")
        return ", ".join(parts)
