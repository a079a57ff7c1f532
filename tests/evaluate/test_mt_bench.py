"""MT-Bench's numbers: pairs need both orders, and what is unparsed enters nothing."""

from __future__ import annotations

import itertools

import pytest

from rayalign.evaluate.mt_bench import grades_summary, outcome, pairs_summary

CATEGORIES = {"1": "math", "2": "math", "3": "writing"}


def test_a_win_needs_both_orders() -> None:
    """All nine pairs of verdicts: the model is A in the first, B in the second."""
    expected = {("A", "B"): "win", ("B", "A"): "loss"}
    for first, second in itertools.product("ABC", repeat=2):
        found, agree = outcome(first, second)
        assert found == expected.get((first, second), "tie")
        assert agree == ((first, second) in {**expected, ("C", "C"): ""})
    assert outcome(None, "A") == outcome("A", None) == (None, False)


def test_grades_by_turn_and_category() -> None:
    found = grades_summary({"1": (8.0, 6.0), "2": (None, 2.0), "3": (None, None)}, CATEGORIES)
    assert found["score"]["mean"] == pytest.approx(16 / 3) and found["score"]["num"] == 2 and found["num_unparsed"] == 3
    assert found["turns"]["1"] == {"mean": 8.0, "low": None, "high": None, "num": 1}
    assert found["turns"]["2"]["mean"] == 4 and found["categories"]["writing"]["mean"] is None
    assert list(found["categories"]) == ["math", "writing"]


def test_pairs_by_turn_and_category() -> None:
    verdicts = {
        "1": [("A", "B"), ("A", "A")],
        "2": [("B", "A"), ("A", None)],
        "3": [("A", "B"), ("C", "C")],
    }
    found = pairs_summary(verdicts, CATEGORIES)
    assert (found["wins"], found["ties"], found["losses"], found["num_unparsed"]) == (2, 2, 1, 1)
    assert found["win_rate"]["mean"] == pytest.approx(3 / 5) and found["num_order_decides"] == 1
    assert found["turns"]["1"]["wins"] == 2 and found["categories"]["math"]["losses"] == 1
    assert found["categories"]["writing"]["win_rate"]["mean"] == 0.75
