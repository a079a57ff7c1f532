"""Best of n, from M samples a prompt that are scored already: which is chosen, and how often each would be."""

from __future__ import annotations

import numpy as np


def chosen(scores: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The place of each prompt's best sample, among equals drawn at random: scores [P, M] -> [P] int64 (T23)."""
    best = scores == scores.max(axis=1, keepdims=True)
    places: np.ndarray = np.where(best, random.random(scores.shape), -1.0).argmax(axis=1)
    return places


def chances(scores: np.ndarray, n: int) -> np.ndarray:
    """How likely each sample is the best of n that are drawn from its prompt's M without replacement: [P, M] -> [P, M].

    The k-th lowest of M is, in C(k-1, n-1) of C(M, n) sets; equals share what their ranks have (T23). With these as
    weights, the mean of anything measured on the samples is unbiased for the best of n by `scores`.
    Raises ValueError unless 1 <= n <= M.
    """
    num = scores.shape[1]
    if not 1 <= n <= num:
        raise ValueError(f"the best of {n} cannot be told from {num} samples a prompt")
    by_rank = np.zeros(num)
    by_rank[-1] = n / num
    for below in range(num - 1, n - 1, -1):  # C(k-1, n-1) / C(k, n-1) = (k - n + 1) / k
        by_rank[below - 1] = by_rank[below] * (below - n + 1) / below
    return np.stack([_shared(row, by_rank) for row in scores])


def _shared(scores: np.ndarray, by_rank: np.ndarray) -> np.ndarray:
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    mass = np.bincount(np.sort(group), weights=by_rank)
    shared: np.ndarray = (mass / sizes)[group]
    return shared
