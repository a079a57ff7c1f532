"""Held-out rows never share a prompt with training rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayalign.data.splits import split_heldout
from rayalign.errors import DataError

IDS = st.lists(st.integers(0, 12), max_size=40).map(lambda values: np.array(values, dtype=np.int64))


@given(IDS, st.floats(0, 0.95), st.integers(0, 3))
def test_split_is_a_partition_by_prompt(ids, frac, seed):
    train, heldout = split_heldout(ids, frac=frac, seed=seed)
    assert train.dtype == heldout.dtype == np.int64
    assert sorted([*train.tolist(), *heldout.tolist()]) == list(range(len(ids)))
    assert not set(ids[train]) & set(ids[heldout])
    assert (np.diff(train) > 0).all()
    assert (np.diff(heldout) > 0).all()
    if len(set(ids.tolist())) > 1:
        assert len(train) > 0
        assert (len(heldout) > 0) == (frac > 0)
        smallest = np.unique(ids, return_counts=True)[1].min()
        assert len(heldout) <= max(frac * len(ids), smallest)


@given(IDS, st.floats(0, 0.95))
def test_split_is_deterministic(ids, frac):
    one, two = split_heldout(ids, frac=frac, seed=1), split_heldout(ids.copy(), frac=frac, seed=1)
    assert [part.tolist() for part in one] == [part.tolist() for part in two]


def test_sizes_without_shared_prompts():
    train, heldout = split_heldout(np.arange(200), frac=0.1, seed=0)
    assert (len(train), len(heldout)) == (180, 20)
    other = split_heldout(np.arange(200), frac=0.1, seed=1)[1]
    assert heldout.tolist() != other.tolist()


def test_few_rows():
    assert [len(part) for part in split_heldout(np.arange(3), frac=0.1, seed=0)] == [2, 1]
    assert [len(part) for part in split_heldout(np.arange(1), frac=0.5, seed=0)] == [1, 0]
    assert [len(part) for part in split_heldout(np.array([], int), frac=0.5, seed=0)] == [0, 0]
    assert [len(part) for part in split_heldout(np.zeros(9, int), frac=0.5, seed=0)] == [9, 0]


def test_bad_frac():
    with pytest.raises(DataError, match="must be at least 0 and below 1"):
        split_heldout(np.arange(3), frac=1.0, seed=0)
