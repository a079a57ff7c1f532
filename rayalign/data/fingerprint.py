"""What data says, as a short text, so that a checkpoint can tell whether it has the data it was made with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from rayalign.data.files import Place
from rayalign.types import Ragged, Sequences, TokenizedPrompts


def fingerprint(data: Sequences | TokenizedPrompts | Ragged | Iterable[Any]) -> str:
    """A hash of 32 hexadecimal digits over the content, in order; the same on every machine.

    `data` is tokens, or rows: demonstrations, preferences, conversations, dictionaries, each also with its
    Place. Places do not count: moving a file does not change its data.
    """
    digest = hashlib.sha256()
    if isinstance(data, (Sequences, TokenizedPrompts, Ragged)):
        _add_arrays(digest, data)
    else:
        for row in data:
            digest.update(row_bytes(row))
    return digest.hexdigest()[:32]


def extend_fingerprint(previous: str, row: Any) -> str:
    """The fingerprint of a stream with one more row: a chain, so that it can go on from a checkpoint."""
    return hashlib.sha256(previous.encode() + row_bytes(row)).hexdigest()[:32]


def row_bytes(row: Any) -> bytes:
    """One row in a form that is the same everywhere, closed so that neighbours cannot run into each other."""
    if isinstance(row, tuple) and row and isinstance(row[0], Place):
        row = row[1:]
    return json.dumps(row, sort_keys=True, default=_plain).encode() + b"\n"


def _plain(value: Any) -> Any:
    """What json cannot write: our dataclasses, arrays, and the dates and bytes of Parquet."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    return str(value)


def _add_arrays(digest: Any, data: Any) -> None:
    """Every array of a ragged value, with its name and type, and integers as 64 bits on any machine."""
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if dataclasses.is_dataclass(value):
            _add_arrays(digest, value)
            continue
        array = np.ascontiguousarray(value.astype("<i8") if value.dtype.kind in "iub" else value)
        digest.update(f"{field.name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.tobytes())
