"""Accuracy of a reward by hand, on rewards whose faults are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from rayalign.evaluate.reward_accuracy import LENGTH_NAMES, ScoredPairs, calibration, rank_correlation, reward_accuracy


def pairs_of(margins: Any, lengths: Any = None, sections: Any = None, subsets: Any = None) -> ScoredPairs:
    margins = np.asarray(margins, dtype=float)
    chosen, rejected = lengths if lengths is not None else (np.full(len(margins), 10), np.full(len(margins), 10))
    sections = sections or ["all"] * len(margins)
    zeros = np.zeros(len(margins))
    return ScoredPairs(margins, zeros, np.asarray(chosen), np.asarray(rejected), sections, subsets or sections)


def test_sections_count_alike_and_their_pairs_alike_within() -> None:
    margins = [1, 1, 1, -1, 0, 1]
    found = reward_accuracy(pairs_of(margins, sections=["a"] * 4 + ["b"] * 2, subsets=["x", "x", "x", "y", "z", "z"]))
    assert found["accuracy"]["mean"] == 4.5 / 6 and found["num_ties"] == 1
    sections = found["sections"]
    assert sections["a"]["accuracy"]["mean"] == 0.75
    assert {name: one["accuracy"]["mean"] for name, one in sections["a"]["subsets"].items()} == {"x": 1.0, "y": 0.0}
    assert (sections["b"]["accuracy"]["num"], sections["b"]["num_ties"]) == (2, 1)
    assert found["score"] == 0.75 == sections["b"]["accuracy"]["mean"]
    assert found["accuracy"]["low"] < found["accuracy"]["mean"] < found["accuracy"]["high"]


def test_a_reward_that_labels_were_drawn_from_is_calibrated_and_a_louder_one_is_not() -> None:
    """Labels by Bradley-Terry on the margins: the error is that of sampling; three times the scale is over-confident."""
    rng = np.random.default_rng(0)
    strengths = np.abs(rng.normal(size=40_000)) * 2
    right = rng.random(40_000) < 1 / (1 + np.exp(-strengths))
    margins = np.where(right, strengths, -strengths)
    told = calibration(margins)
    assert told["expected_error"] < 0.01
    assert sum(one["num"] for one in told["curve"]) == 40_000
    confident = [one["confidence"] for one in told["curve"]]
    assert confident == sorted(confident) and confident[0] >= 0.5
    assert calibration(3 * margins)["expected_error"] > 0.1


def test_a_reward_that_counts_tokens_is_seen() -> None:
    rng = np.random.default_rng(0)
    chosen, rejected = rng.integers(1, 200, 2000), rng.integers(1, 200, 2000)
    by_length = reward_accuracy(pairs_of(chosen - rejected, (chosen, rejected)))["length"]
    assert by_length["rank_correlation"] > 0.9
    shares = {name: one["accuracy"]["mean"] for name, one in by_length["by_ratio"].items()}
    assert shares[LENGTH_NAMES[0]] == 0 and shares[LENGTH_NAMES[-1]] == 1
    assert list(shares) == list(LENGTH_NAMES)
    assert by_length["longer_side"]["accuracy"]["mean"] == pytest.approx(0.5, abs=0.05)
    good = reward_accuracy(pairs_of(np.ones(2000) + rng.normal(size=2000) / 10, (chosen, rejected)))["length"]
    assert abs(good["rank_correlation"]) < 0.1


def test_ranks_are_those_of_scipy() -> None:
    rng = np.random.default_rng(1)
    first, second = rng.integers(0, 6, 200), rng.integers(0, 6, 200)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second).statistic)
    assert rank_correlation(np.ones(5), np.arange(5)) is None
