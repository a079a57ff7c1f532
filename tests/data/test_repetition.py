"""Repeated n-grams and identical responses against a plain count."""

from __future__ import annotations

import numpy as np
import pytest

from rayalign.data.repetition import identical_responses, repeated_ngrams, responses_of
from rayalign.types import Ragged, Sequences


def plain_count(rows: list[list[int]], size: int) -> tuple[int, int]:
    repeated = total = 0
    for row in rows:
        grams = [tuple(row[i : i + size]) for i in range(len(row) - size + 1)]
        repeated, total = repeated + len(grams) - len(set(grams)), total + len(grams)
    return repeated, total


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(4))
def test_counts_agree_with_a_plain_count(seed, size):
    """Few token ids, rows of all lengths, some empty; ids and row numbers must not be taken for each other."""
    random = np.random.default_rng(seed)
    rows = [random.integers(0, 4, length).tolist() for length in random.integers(0, 25, 60)]
    found = repeated_ngrams(Ragged.from_list(rows), size)
    assert found == plain_count(rows, size)
    assert found[0] > 0


def test_nothing_to_repeat():
    assert repeated_ngrams(Ragged.from_list([])) == (0, 0)
    assert repeated_ngrams(Ragged.from_list([[1, 2, 3], []])) == (0, 0)
    assert repeated_ngrams(Ragged.from_list([[1, 2, 3], [1, 2, 3]]), 3) == (0, 2)  # in another response
    with pytest.raises(ValueError, match="at least one token"):
        repeated_ngrams(Ragged.from_list([[1]]), 0)


def sequences(rows: list[tuple[int, list[int], list[int]]]) -> Sequences:
    """(prompt id, prompt, response) of each."""
    return Sequences(
        Ragged.from_list([prompt + response for _, prompt, response in rows]),
        np.array([len(prompt) for _, prompt, _ in rows]),
        np.array([number for number, _, _ in rows]),
        np.ones(len(rows), dtype=bool),
    )


def test_identical_responses_are_those_to_one_prompt():
    found = sequences([(5, [1], [2, 3]), (9, [1, 1], [2, 3]), (5, [1], [2, 3]), (5, [1], [3, 2]), (5, [1], [2, 3])])
    assert identical_responses(found) == (2, 3)
    assert identical_responses(sequences([(0, [1], [2]), (1, [1], [2])])) == (0, 0)


def test_responses_leave_the_prompts():
    found = responses_of(sequences([(0, [7, 7], [1, 2]), (1, [7], []), (2, [], [3])]))
    assert found.values.tolist() == [1, 2, 3] and found.lengths.tolist() == [2, 0, 1]
