"""Chances of being chosen, against all subsets; ties at random."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from rayalign.evaluate.best_of import chances, chosen
from rayalign.objectives.best_of import expected_best_of

SCORES = np.array([[0.3, -1.0, 2.0, 0.5, 0.4], [1.0, 1.0, 0.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 0.0]])


def by_enumeration(scores: np.ndarray, n: int) -> np.ndarray:
    """Every set of n; equals share it."""
    found = np.zeros(len(scores))
    subsets = list(combinations(range(len(scores)), n))
    for subset in subsets:
        best = [i for i in subset if scores[i] == max(scores[list(subset)])]
        found[best] += 1 / len(best) / len(subsets)
    return found


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_chances_are_those_of_all_subsets(n: int) -> None:
    found = chances(SCORES, n)
    assert found == pytest.approx(np.stack([by_enumeration(row, n) for row in SCORES]))
    # the learned reward by these weights is the order-statistics estimate
    assert (found * SCORES).sum(axis=1) == pytest.approx(expected_best_of(torch.from_numpy(SCORES), n).numpy())


def test_many_samples_stay_finite() -> None:
    found = chances(np.arange(4096.0)[None], 2000)
    assert found.sum() == pytest.approx(1) and np.isfinite(found).all()


@pytest.mark.parametrize("n", [0, 6])
def test_more_than_there_are(n: int) -> None:
    with pytest.raises(ValueError, match=f"best of {n} cannot be told from 5 samples"):
        chances(SCORES, n)


def test_ties_are_broken_evenly() -> None:
    random = np.random.default_rng(0)
    picks = np.stack([chosen(SCORES, random) for _ in range(3000)])
    assert (picks[:, 0] == 2).all()
    assert (picks[:, 1] == 3).mean() == pytest.approx(0.5, abs=0.04) and set(picks[:, 1]) == {3, 4}
    assert np.bincount(picks[:, 2]) / 3000 == pytest.approx(np.full(5, 0.2), abs=0.04)
