"""Samples that a stage stored with their tokens: read by those, as no text gives them back for certain."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from rayalign.data.files import PlacedRow, Row, data_suffix, read_file
from rayalign.errors import DataError
from rayalign.types import Ragged, Sequences

COLUMNS = frozenset({"prompt_tokens", "response_tokens", "ended"})


def is_sample_file(path: Path) -> bool:
    """Whether the first row of a local file is a stored sample."""
    if data_suffix(path) is None or not path.is_file():
        return False
    _, first = next(read_file(path), (None, {}))
    return first.keys() >= COLUMNS


def stored_samples(rows: Iterable[PlacedRow]) -> Iterator[PlacedRow]:
    """The rows, each looked at. Raises DataError for one that is no stored sample."""
    for place, row in rows:
        if not row.keys() >= COLUMNS:
            raise DataError(f"{place}: not a sample that a sample stage stored (no tokens); name its samples.jsonl")
        if not _is_whole(row):
            raise DataError(f"{place}: a stored sample has lists of token numbers, and tokens in both; sample again")
        yield place, row


def read_samples(path: Path, *, limit: int | None = None) -> Sequences:
    """Stored samples (the first `limit` ones), each with a prompt id of its own. Raises DataError for other files."""
    rows = [row for _, row in stored_samples(islice(read_file(path), limit))]
    if not rows:
        raise DataError(f"{path}: holds no samples; sample some, or name another file")
    return Sequences(
        tokens=Ragged.from_list([row["prompt_tokens"] + row["response_tokens"] for row in rows]),
        prompt_lengths=np.array([len(row["prompt_tokens"]) for row in rows], dtype=np.int64),
        prompt_ids=np.arange(len(rows)),
        ended=np.array([row["ended"] for row in rows], dtype=bool),
    )


def _is_whole(row: Row) -> bool:
    sides = row["prompt_tokens"], row["response_tokens"]
    return all(isinstance(side, list) and side and all(type(token) is int for token in side) for side in sides)
