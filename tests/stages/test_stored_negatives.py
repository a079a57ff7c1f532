"""Stored samples as negatives: each meets the demonstrations of its own prompt, whatever the ids of both are."""

from __future__ import annotations

import numpy as np

from rayalign.data.pairs import PairDraw
from rayalign.data.splits import split_heldout
from rayalign.stages.inputs import matched_to
from tests.models.tiny import END, sequences_of


def test_negatives_of_demonstrations_that_were_split_share_their_prompts() -> None:
    """What is left for training has gaps in its ids; a held-out prompt's samples are not taken."""
    every = sequences_of([([5 + i], [20, END]) for i in range(10)])
    train_rows, heldout_rows = split_heldout(every.prompt_ids, frac=0.3, seed=0)
    train, heldout = every.take(train_rows), every.take(heldout_rows)
    samples = sequences_of([([5 + i % 10], [30 + i, END]) for i in reversed(range(20))])
    found = matched_to(train, samples)
    assert len(found) == 2 * len(train)
    seen = {tokens.tobytes() for tokens in found.prompts()}
    assert seen == {tokens.tobytes() for tokens in train.prompts()}
    assert not seen & {tokens.tobytes() for tokens in heldout.prompts()}
    pairs = PairDraw(train, [found]).draw(np.random.default_rng(0), 20)
    prompts = [tokens.tobytes() for tokens in pairs.prompts()]
    assert prompts[0::2] == prompts[1::2]
