"""Properties of sharding, micro-batching and the ragged type itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayalign.data.ragged import micro_batches, shard_rows
from rayalign.types import Ragged

LENGTHS = st.lists(st.integers(0, 50), max_size=40).map(lambda values: np.array(values, dtype=np.int64))


@given(LENGTHS, st.integers(1, 9))
def test_shards_are_a_balanced_partition(lengths, num_ranks):
    shards = [shard_rows(lengths, num_ranks=num_ranks, rank=rank) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(len(lengths)))
    assert all(shard.dtype == np.int64 and (np.diff(shard) > 0).all() for shard in shards)
    loads = [int(lengths[shard].sum()) for shard in shards]
    assert max(loads) - min(loads) <= lengths.max(initial=0)


@given(LENGTHS, st.integers(1, 9))
def test_shards_are_deterministic(lengths, num_ranks):
    again = [shard_rows(lengths.copy(), num_ranks=num_ranks, rank=rank).tolist() for rank in range(num_ranks)]
    assert again == [
        shard_rows(lengths, num_ranks=num_ranks, rank=rank).tolist() for rank in range(num_ranks)
    ]


def test_equal_rows_spread_by_count():
    """No divisibility rule: 10 rows on 3 ranks are 4, 3, 3, even where they have no tokens."""
    for length in (0, 7):
        lengths = np.full(10, length)
        assert sorted(len(shard_rows(lengths, num_ranks=3, rank=r)) for r in range(3)) == [3, 3, 4]


def test_more_ranks_than_rows():
    shards = [shard_rows(np.array([3]), num_ranks=4, rank=rank) for rank in range(4)]
    assert [len(shard) for shard in shards] == [1, 0, 0, 0]
    with pytest.raises(ValueError, match="rank 4 of 4 ranks"):
        shard_rows(np.array([3]), num_ranks=4, rank=4)


@given(LENGTHS, st.integers(1, 120), st.booleans())
def test_micro_batches_keep_their_budget(lengths, max_tokens, packing):
    batches = micro_batches(lengths, max_tokens=max_tokens, packing=packing)
    assert sorted(np.concatenate([*batches, np.empty(0, int)]).tolist()) == list(range(len(lengths)))
    for batch in batches:
        rows = lengths[batch]
        assert batch.dtype == np.int64
        assert (np.diff(rows) <= 0).all(), "sorted by length"
        cost = rows.sum() if packing else len(rows) * rows.max()
        assert cost <= max_tokens or len(rows) == 1


@given(LENGTHS, st.integers(1, 120))
def test_packing_leaves_no_two_batches_that_fit_into_one(lengths, max_tokens):
    loads = [int(lengths[b].sum()) for b in micro_batches(lengths, max_tokens=max_tokens, packing=True)]
    assert all(a + b > max_tokens for i, a in enumerate(loads) for b in loads[i + 1 :])


def test_documented_examples():
    lengths = np.array([5, 1, 4, 2])
    assert [shard_rows(lengths, num_ranks=2, rank=r).tolist() for r in range(2)] == [[0, 1], [2, 3]]
    padded = micro_batches(lengths, max_tokens=8, packing=False)
    assert [batch.tolist() for batch in padded] == [[0], [2, 3], [1]]
    packed = micro_batches(lengths, max_tokens=8, packing=True)
    assert [batch.tolist() for batch in packed] == [[0, 3, 1], [2]]


def test_a_budget_of_nothing():
    with pytest.raises(ValueError, match="max_tokens must be at least 1"):
        micro_batches(np.array([1]), max_tokens=0, packing=True)


ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=6), max_size=12)


@given(ROWS)
def test_ragged_round_trip(rows):
    ragged = Ragged.from_list(rows)
    assert [row.tolist() for row in ragged] == rows
    assert len(ragged) == len(rows)


@given(ROWS, st.data())
def test_ragged_take(rows, data):
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=8)) if rows else []
    taken = Ragged.from_list(rows).take(np.array(picked, dtype=np.int64))
    assert [row.tolist() for row in taken] == [rows[row] for row in picked]


@given(st.lists(ROWS, min_size=1, max_size=4))
def test_ragged_concatenate(parts):
    joined = Ragged.concatenate([Ragged.from_list(part) for part in parts])
    assert [row.tolist() for row in joined] == [row for part in parts for row in part]


@given(LENGTHS, st.integers(1, 5), st.integers(1, 120), st.booleans())
def test_sharding_then_batching_still_sees_every_row_once(lengths, num_ranks, max_tokens, packing):
    seen = []
    for rank in range(num_ranks):
        mine = shard_rows(lengths, num_ranks=num_ranks, rank=rank)
        for batch in micro_batches(lengths[mine], max_tokens=max_tokens, packing=packing):
            seen += mine[batch].tolist()
    assert sorted(seen) == list(range(len(lengths)))
