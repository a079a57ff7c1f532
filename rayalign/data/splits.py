"""Rows kept out of training. A prompt is never on both sides."""

from __future__ import annotations

import numpy as np

from rayalign.errors import DataError


def split_heldout(prompt_ids: np.ndarray, *, frac: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train rows, held-out rows), both ascending int64, together every row once.

    `prompt_ids` [B] say which rows answer the same prompt (`Sequences.prompt_ids`, or `tokenize.prompt_ids`);
    such rows stay together. About `frac` of the rows are held out: never more than that when it means at
    least one row, at least one prompt when `frac` is above 0 and there are two, and never all. Which ones
    depends on the seed and the ids alone.

    Raises DataError for a frac outside [0, 1).
    """
    if not 0 <= frac < 1:
        raise DataError(f"the held-out share must be at least 0 and below 1, got {frac}")
    ids = np.asarray(prompt_ids)
    _, group_of_row, sizes = np.unique(ids, return_inverse=True, return_counts=True)
    heldout = (
        np.isin(group_of_row, _choose(sizes, frac * len(ids), seed)) if frac > 0 else np.zeros(len(ids), bool)
    )
    return np.flatnonzero(~heldout).astype(np.int64), np.flatnonzero(heldout).astype(np.int64)


def _choose(sizes: np.ndarray, target: float, seed: int) -> list[int]:
    """Groups in a random order, each taken if it still fits; the smallest if none does."""
    chosen: list[int] = []
    if len(sizes) < 2:
        return chosen
    num_rows = 0
    order = np.random.default_rng(seed).permutation(len(sizes))
    for group in order:
        if num_rows + sizes[group] <= target:
            chosen.append(int(group))
            num_rows += int(sizes[group])
    return chosen or [int(order[np.argmin(sizes[order])])]
