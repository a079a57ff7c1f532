"""Two policies on the same prompts, by the scores of one reward."""

from __future__ import annotations

import numpy as np


def win_rates(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each prompt the share of pairs of samples that the first policy wins: [P, M] and [P, N] -> [P].

    Every sample of one meets every sample of the other, and a tie is half a win. Scores know no order, so what a judge
    that reads two answers must be asked twice for holds by itself: the rates of A over B and of B over A sum to 1.
    Raises ValueError for scores of other prompts.
    """
    if scores.ndim != 2 or others.ndim != 2 or len(scores) != len(others):
        raise ValueError(f"needs the scores of as many prompts, got arrays of shapes {scores.shape} and {others.shape}")
    signs = np.sign(scores[:, :, None] - others[:, None, :])
    rates: np.ndarray = (signs.sum(axis=(1, 2)) / signs[0].size + 1) / 2
    return rates
