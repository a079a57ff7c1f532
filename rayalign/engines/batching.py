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


def rank_micro_batches(
    sequences: Sequences, learner: LearnerConfig, rank: Rank, *, group_size: int = 1
) -> list[tuple[np.ndarray, float]]:
    """This rank's (rows, weight) pairs, as many on every rank: ZeRO's collectives need the same number of passes.

    Every rank knows the whole batch, so no rank asks another. A rank with fewer repeats the first group at weight 0;
    `group_size` consecutive rows (the two sides of a pair) are never torn apart.
    """
    packing, budget = learner.packing, learner.micro_batch_tokens
    lengths = sequences.tokens.lengths.reshape(-1, group_size)
    # A padded group costs its longest member for each of its rows, a packed one the sum of its members.
    costs = lengths.sum(axis=1) if packing else lengths.max(axis=1)
    max_tokens = budget if packing else max(1, budget // group_size)

    def of_rank(number: int) -> list[np.ndarray]:
        groups = shard_rows(costs, num_ranks=rank.world_size, rank=number)
        return [groups[b] for b in micro_batches(costs[groups], max_tokens=max_tokens, packing=packing)]

    plans = [of_rank(number) for number in range(rank.world_size)]
    longest = max(1, max(len(plan) for plan in plans))
    own = [(groups, 1.0) for groups in plans[rank.rank]]
    own += [(np.array([0]), 0.0)] * (longest - len(own))
    members = np.arange(group_size)
    return [((groups[:, None] * group_size + members).reshape(-1), weight) for groups, weight in own]


def concatenated_rows(results: Sequence[tuple[np.ndarray, torch.Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """(rows, values) of results with one value a row, as two flat arrays."""
    if not results:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    rows = np.concatenate([rows for rows, _ in results]).astype(np.int64)
    return rows, np.concatenate([values.float().cpu().numpy() for _, values in results])
