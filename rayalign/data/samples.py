"""Samples that a stage stored with their tokens: read by those, as no text gives them back for certain."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from rayalign.data.files import PlacedRow, data_suffix, read_file
from rayalign.errors import DataError
from rayalign.types import Ragged, Sequences

MAX_TOKENS = 2**31  # of any tokenizer
COLUMNS = frozenset({"prompt_tokens", "response_tokens", "ended"})


def is_sample_file(path: Path) -> bool:
    """Whether the first row of a local file is a stored sample."""
    if data_suffix(path) is None or not os.path.isfile(path):
        return False
    _, first = next(read_file(path), (None, {}))
    return first.keys() >= COLUMNS


def stored_samples(rows: Iterable[PlacedRow], *, num_tokens: int | None = None) -> Iterator[PlacedRow]:
    """The rows, each looked at. Raises DataError for one that is no stored sample, or has tokens of `num_tokens` or more."""
    most = MAX_TOKENS if num_tokens is None else num_tokens
    for place, row in rows:
        if missing := sorted(COLUMNS - row.keys()):
            raise DataError(
                f"{place}: not a sample that a sample stage stored (no {', '.join(missing)}); name its samples.jsonl"
            )
        for side in ("prompt_tokens", "response_tokens"):
            if not _are_tokens(row[side]):
                raise DataError(f"{place}: {side!r} of a stored sample is a list of token numbers, not empty; sample again")
            if max(row[side]) >= most:
                raise DataError(
                    f"{place}: {side!r} has token {max(row[side]):.8g}, and the run's tokenizer has {most} tokens; "
                    "sample again with it"
                )
        if not isinstance(row["ended"], bool):
            raise DataError(f"{place}: 'ended' of a stored sample is true or false; sample again")
        yield place, row


def read_samples(path: Path, *, limit: int | None = None, num_tokens: int | None = None) -> Sequences:
    """Stored samples (the first `limit` ones), each with a prompt id of its own. Raises DataError for other files."""
    rows = [row for _, row in stored_samples(islice(read_file(path), limit), num_tokens=num_tokens)]
    if not rows:
        raise DataError(f"{path}: holds no samples; sample some, or name another file")
    return Sequences(
        tokens=Ragged.from_list([row["prompt_tokens"] + row["response_tokens"] for row in rows]),
        prompt_lengths=np.array([len(row["prompt_tokens"]) for row in rows], dtype=np.int64),
        prompt_ids=np.arange(len(rows)),
        ended=np.array([row["ended"] for row in rows], dtype=bool),
    )


def _are_tokens(side: object) -> bool:
    return isinstance(side, list) and bool(side) and all(type(token) is int and token >= 0 for token in side)
