"""Pairs: matched within prompts, split by prompts, and what cannot teach is left out."""

from __future__ import annotations

import numpy as np
import pytest

from rayalign.data.pairs import FixedDraw, interleaved, matched
from rayalign.errors import DataError
from rayalign.stages.pairs import _different, split_pairs, tell_balance
from tests.models.tiny import END, random_sequences, sequences_of


class Said:
    """Stands for the run's progress line."""

    def __init__(self):
        self.lines = []
        self.progress = self

    def say(self, line):
        self.lines.append(line)


def test_each_row_of_the_larger_side_comes_once():
    """Two better and three worse answers to prompt 0, one better to prompt 1 that has no worse one."""
    better = sequences_of([([5], [10, END]), ([5], [11, END]), ([6], [12, END])], prompt_ids=[0, 0, 1])
    worse = sequences_of([([5], [20, END]), ([5], [21, END]), ([5], [22, END])], prompt_ids=[0, 0, 0])
    first, second = matched(better, worse)
    assert first.prompt_ids.tolist() == second.prompt_ids.tolist() == [0, 0, 0]
    assert sorted(int(r[0]) for r in second.responses()) == [20, 21, 22]
    assert {int(r[0]) for r in first.responses()} == {10, 11}
    both = interleaved(first, second)
    assert [int(r[0]) >= 20 for r in both.responses()] == [False, True] * 3


def test_a_prompt_is_never_on_both_sides_of_the_split():
    better, worse = random_sequences(40, seed=1, num_prompts=10), random_sequences(40, seed=2, num_prompts=10)
    (train, _), (heldout, heldout_worse) = split_pairs(better, worse, frac=0.3, seed=0)
    assert len(train) + len(heldout) == 40 and len(heldout)
    assert not set(train.prompt_ids.tolist()) & set(heldout.prompt_ids.tolist())
    assert heldout.prompt_ids.tolist() == heldout_worse.prompt_ids.tolist()


def test_pairs_of_two_equal_responses_are_left_out_and_told():
    better = sequences_of([([5], [10, END]), ([6], [11, END])])
    worse = sequences_of([([5], [10, END]), ([6], [12, END])])
    said = Said()
    first, second = _different(said, "pairs", better, worse)
    assert len(first) == len(second) == 1
    assert said.lines == ["pairs: 1 of 2 pairs are two equal responses; left out"]
    with pytest.raises(DataError, match="in every pair the two responses are the same"):
        _different(said, "pairs", better, better)


def test_a_step_draws_without_repetition_where_there_are_enough():
    pairs = FixedDraw(random_sequences(5, seed=3), random_sequences(5, seed=4))
    drawn = pairs.draw(np.random.default_rng(0), 5)
    assert len({tuple(t) for t in drawn.take(np.arange(0, 10, 2)).tokens}) == 5
    assert len(pairs.draw(np.random.default_rng(0), 8)) == 16


@pytest.mark.parametrize(
    ("counts", "weights", "told"),
    [((200, 50), (1.0, 1.0), ""), ((200, 20), (1.0, 1.0), "10 to 1"), ((200, 20), (0.1, 1.0), "")],
)
def test_weighting_by_counts_says_how_far_apart_it_sets_the_sources(counts, weights, told):
    """T38: only where one source counts more than four times as much."""
    said = Said()
    tell_balance(said, "aihf", counts, weights)
    assert bool(said.lines) is bool(told)
    if told:
        assert said.lines == [
            "warning: stages.aihf: weighting counts weighs 200 demonstrations to 20 preferences as 10 to 1 (T38): right "
            "where each row tells as much as another; if not, set weighting to means, or the weights"
        ]
