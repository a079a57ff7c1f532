"""How much responses repeat: n-grams of tokens within a response, and whole responses within a prompt's group.

Counted on a batch's flat tokens with one sort of 64-bit hashes: no loop over tokens, no text.
"""

from __future__ import annotations

import numpy as np

from rayalign.types import Ragged, Sequences

NGRAM = 4  # tokens; shorter ones repeat in any grammatical text


def responses_of(sequences: Sequences) -> Ragged:
    """[B] rows of response tokens."""
    flat = sequences.tokens
    places = np.arange(len(flat.values)) - np.repeat(flat.starts, flat.lengths)
    return Ragged(flat.values[places >= np.repeat(sequences.prompt_lengths, flat.lengths)], sequences.response_lengths)


def repeated_ngrams(responses: Ragged, size: int = NGRAM) -> tuple[int, int]:
    """(n-grams that stand earlier in the same response, n-grams), over all rows of [B] responses.

    A response shorter than `size` has none. Raises ValueError for a size below 1.

    Example: [7, 8, 7, 8, 7] has the bigrams 78, 87, 78, 87: `repeated_ngrams(responses, size=2)` is (2, 4).
    """
    if size < 1:
        raise ValueError(f"an n-gram has at least one token, got size {size}")
    rows = np.repeat(np.arange(len(responses), dtype=np.uint64), responses.lengths)
    num = max(0, len(rows) - size + 1)
    hashes = _mixed(rows[:num])
    for place in range(size):
        hashes = _mixed(hashes ^ responses.values[place : place + num].astype(np.uint64))
    own = rows[:num] == rows[len(rows) - num :]  # the others run over a row's end
    return int(own.sum()) - len(np.unique(hashes[own])), int(own.sum())


def identical_responses(sequences: Sequences) -> tuple[int, int]:
    """(responses that an earlier one to the same prompt equals, responses that have an earlier one to their prompt).

    Example: a prompt answered "a", "b", "a" and another answered "a" make (1, 2).
    """
    seen: set[tuple[int, bytes]] = set()
    for prompt, response in zip(sequences.prompt_ids.tolist(), sequences.responses(), strict=True):
        seen.add((prompt, response.tobytes()))
    prompts = len(np.unique(sequences.prompt_ids))
    return len(sequences) - len(seen), len(sequences) - prompts


def _mixed(values: np.ndarray) -> np.ndarray:
    """[T] uint64, each spread over all bits (splitmix64's finaliser): among a million, two collide once in 10^7 batches."""
    values = (values + np.uint64(0x9E3779B97F4A7C15)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
