"""How a batch is shared out: over ranks by tokens, over micro-batches by a token budget."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rayalign.config.model import LearnerConfig
from rayalign.data.ragged import micro_batches, shard_rows
from rayalign.types import Sequences


@dataclass(frozen=True)
class Rank:
    """This process among the ranks of its group."""

    rank: int = 0
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> Rank:
        """RANK and WORLD_SIZE as the placement set them; alone if unset."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


@dataclass(frozen=True)
class MicroBatch:
    """What one rank runs in one pass."""

    rows: np.ndarray  # [b] places in the batch
    weight: float  # of its loss: 1, or 0 where the rank only keeps the others company
    most_response_tokens: int  # that any rank has in this pass


def rank_micro_batches(
    sequences: Sequences, learner: LearnerConfig, rank: Rank, *, group_sizes: np.ndarray | None = None
) -> list[MicroBatch]:
    """This rank's micro-batches, as many on every rank: ZeRO's collectives need the same number of passes.

    Every rank knows the whole batch, so no rank asks another. A rank with fewer repeats the first group at weight 0.
    `group_sizes` [G] cut the rows into consecutive groups (the two sides of a pair) that are never torn apart; each row
    is one if unset.
    """
    packing, budget = learner.packing, learner.micro_batch_tokens
    sizes = np.ones(len(sequences), dtype=np.int64) if group_sizes is None else group_sizes
    if int(sizes.sum()) != len(sequences):
        raise ValueError(f"group sizes sum to {int(sizes.sum())}, there are {len(sequences)} rows")
    first = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    # A padded group costs its longest member for each of its rows, a packed one the sum of its members.
    reduce = np.add if packing else np.maximum
    costs = reduce.reduceat(sequences.tokens.lengths, first)
    max_tokens = budget if packing else max(1, budget // int(sizes.max()))

    def of_rank(number: int) -> list[np.ndarray]:
        groups = shard_rows(costs, num_ranks=rank.world_size, rank=number)
        return [groups[b] for b in micro_batches(costs[groups], max_tokens=max_tokens, packing=packing)]

    plans = [of_rank(number) for number in range(rank.world_size)]
    num_passes = max(1, *(len(plan) for plan in plans))
    full = [plan + [np.array([0])] * (num_passes - len(plan)) for plan in plans]
    tokens = np.add.reduceat(sequences.response_lengths, first)
    return [
        MicroBatch(
            rows=np.concatenate([np.arange(first[g], first[g] + sizes[g]) for g in groups]),
            weight=float(number < len(plans[rank.rank])),
            most_response_tokens=max(int(tokens[plan[number]].sum()) for plan in full),
        )
        for number, groups in enumerate(full[rank.rank])
    ]


def concatenated_rows(results: Sequence[tuple[np.ndarray, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, values) of results with one value a row, as two flat arrays."""
    if not results:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    rows = np.concatenate([rows for rows, _ in results]).astype(np.int64)
    return rows, np.concatenate([values.float().cpu().numpy() for _, values in results])
