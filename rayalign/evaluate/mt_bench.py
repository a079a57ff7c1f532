"""MT-Bench's numbers: mean grades by turn and category, and wins in pairs that were judged in both orders.

A grade that could not be read is None: it enters no mean, and is counted. Intervals are bootstrapped over questions, for
the two turns of one question are not independent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from rayalign.evaluate.statistics import bootstrap_interval

Grades = tuple[float | None, ...]  # of one question, by turn
Outcome = Literal["win", "tie", "loss"]
WORTH = {"win": 1.0, "tie": 0.5, "loss": 0.0}


def grades_summary(grades: Mapping[str, Grades], categories: Mapping[str, str]) -> dict[str, Any]:
    """`score` (of all turns), `turns` and `categories`: intervals as evaluation.json holds them, `num` in questions."""
    turns = range(max((len(one) for one in grades.values()), default=0))
    return {
        "score": _mean(grades.values()),
        "turns": {str(turn + 1): _mean((one[turn],) for one in grades.values()) for turn in turns},
        "categories": {
            category: _mean(one for key, one in grades.items() if categories[key] == category)
            for category in _in_order(categories, grades)
        },
        "num_unparsed": sum(grade is None for one in grades.values() for grade in one),
    }


def outcome(shown_first: str | None, shown_second: str | None) -> tuple[Outcome | None, bool]:
    """What two verdicts mean for the model that stood first in one, and second in the other; and whether they agree.

    It wins or loses only where both orders say so; all else is a tie (as in the paper, section 3.4). None where a verdict
    is missing: half a judgement is none.
    """
    if shown_first is None or shown_second is None:
        return None, False
    sides: dict[str, tuple[Outcome, Outcome]] = {"A": ("win", "loss"), "B": ("loss", "win"), "C": ("tie", "tie")}
    first, second = sides[shown_first][0], sides[shown_second][1]
    return (first, True) if first == second else ("tie", False)


def pairs_summary(
    verdicts: Mapping[str, Sequence[tuple[str | None, str | None]]], categories: Mapping[str, str]
) -> dict[str, Any]:
    """Wins, ties and losses of all, by turn and by category; `verdicts` of a question: (shown first, shown second) a turn.

    `win_rate` counts a tie half. `num_order_decides` are the pairs whose two orders differ.
    """
    found = {key: [outcome(*both) for both in turns] for key, turns in verdicts.items()}
    turns = range(max((len(one) for one in found.values()), default=0))
    plain = {key: [one for one, _ in turns] for key, turns in found.items()}
    return {
        **_counts(plain.values()),
        "turns": {str(turn + 1): _counts([one[turn]] for one in plain.values()) for turn in turns},
        "categories": {
            category: _counts(one for key, one in plain.items() if categories[key] == category)
            for category in _in_order(categories, plain)
        },
        "num_order_decides": sum(one is not None and not agree for turns in found.values() for one, agree in turns),
    }


def _counts(outcomes: Iterable[Sequence[Outcome | None]]) -> dict[str, Any]:
    rows = [list(row) for row in outcomes]
    counted = Counter(one for row in rows for one in row)
    return {
        "wins": counted["win"],
        "ties": counted["tie"],
        "losses": counted["loss"],
        "num_unparsed": counted[None],
        "win_rate": _mean([None if one is None else WORTH[one] for one in row] for row in rows),
    }


def _mean(rows: Iterable[Sequence[float | None]]) -> dict[str, Any]:
    """Of all that is known, with an interval over the questions: a question's turns are no independent values."""
    known = [[value for value in row if value is not None] for row in rows]
    return bootstrap_interval([sum(row) for row in known], [len(row) for row in known]).as_dict()


def _in_order(categories: Mapping[str, str], grades: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(categories[key] for key in grades))
