"""Who gets which rows: ranks balanced by tokens, micro-batches within a token budget.

Rows are never padded here and nothing has to divide anything: a rank may get no row, a last batch may be
small. All of it is a function of the lengths, so every rank computes the same answer without talking.
"""

from __future__ import annotations

import heapq

import numpy as np


def shard_rows(lengths: np.ndarray, *, num_ranks: int, rank: int) -> np.ndarray:
    """The rows of one rank, ascending: [b] int64. The ranks' rows together are every row once.

    The longest row goes first, each to the rank with the fewest tokens so far, so that ranks differ by at
    most the longest row. Raises ValueError for a rank that is not there.

    Example: lengths [5, 1, 4, 2] on two ranks -> [0, 1] and [2, 3].
    """
    if not 0 <= rank < num_ranks:
        raise ValueError(f"rank {rank} of {num_ranks} ranks")
    # Ties go to the rank with fewer rows (so that rows without tokens spread, too), then to the lower rank.
    loads = [(0, 0, r) for r in range(num_ranks)]
    mine: list[int] = []
    for row in _longest_first(lengths):
        tokens, num_rows, chosen = loads[0]
        heapq.heapreplace(loads, (tokens + int(lengths[row]), num_rows + 1, chosen))
        if chosen == rank:
            mine.append(int(row))
    return np.array(sorted(mine), dtype=np.int64)


def micro_batches(lengths: np.ndarray, *, max_tokens: int, packing: bool) -> list[np.ndarray]:
    """Rows in batches that cost at most `max_tokens`, the longest rows first: a list of [b] int64.

    A batch costs its rows times its longest row when it is padded, and the sum of its rows when it is packed
    end to end. Every row is in exactly one batch; a row over the budget has a batch of its own. Raises
    ValueError for a budget below one token.

    Example: lengths [5, 1, 4, 2], max_tokens 8 -> padded [[0], [2, 3], [1]], packed [[0, 3, 1], [2]].
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}")
    order = _longest_first(lengths)
    return _pack(order, lengths, max_tokens) if packing else _pad(order, lengths, max_tokens)


def _pad(order: np.ndarray, lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    batches, first = [], 0
    while first < len(order):
        num_rows = max(max_tokens // max(int(lengths[order[first]]), 1), 1)
        batches.append(order[first : first + num_rows])
        first += num_rows
    return batches


def _pack(order: np.ndarray, lengths: np.ndarray, max_tokens: int) -> list[np.ndarray]:
    """First fit, longest first: at most 11/9 of the fewest batches possible, plus one."""
    free = np.empty(len(order), dtype=np.int64)
    batches: list[list[int]] = []
    for row in order:
        fits = np.flatnonzero(free[: len(batches)] >= lengths[row])
        if len(fits):
            chosen = int(fits[0])
        else:
            chosen = len(batches)
            batches.append([])
            free[chosen] = max_tokens
        batches[chosen].append(int(row))
        free[chosen] -= lengths[row]
    return [np.array(batch, dtype=np.int64) for batch in batches]


def _longest_first(lengths: np.ndarray) -> np.ndarray:
    return np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable")
