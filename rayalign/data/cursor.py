"""Where a run is in its data: endless, and restored from a checkpoint exactly.

There is no last batch: rows come in epoch after epoch, and how long to train is counted in steps. The state
is a few plain values for the checkpoint's manifest; it holds the data's fingerprint and is refused over other
data, because numbers that go on as if nothing had happened are worse than an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from rayalign.data.fingerprint import extend_fingerprint
from rayalign.errors import DataError

T = TypeVar("T")


class Cursor:
    """Endless shuffled epochs over `num_rows` rows; each epoch has its own order, given by seed and epoch.

    `fingerprint` is `rayalign.data.fingerprint.fingerprint` of the data. Raises DataError where there are no
    rows.
    """

    def __init__(self, num_rows: int, seed: int, *, fingerprint: str) -> None:
        if num_rows < 1:
            raise DataError(
                "there are no rows to draw from; the data is empty, or everything in it was left out"
            )
        self.num_rows = num_rows
        self._seed = seed
        self._fingerprint = fingerprint
        self._start_epoch(0)

    def take(self, num: int) -> np.ndarray:
        """The next `num` rows: [num] int64. Within an epoch no row comes twice; a batch may span epochs."""
        parts: list[np.ndarray] = []
        missing = num
        while missing > 0:
            if self._position == self.num_rows:
                self._start_epoch(self._epoch + 1)
            part = self._order[self._position : self._position + missing]
            parts.append(part)
            self._position += len(part)
            missing -= len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def state(self) -> dict[str, Any]:
        """Plain values for the manifest; `restore` goes on from here."""
        return {
            "num_rows": self.num_rows,
            "seed": self._seed,
            "epoch": self._epoch,
            "position": self._position,
            "fingerprint": self._fingerprint,
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], *, fingerprint: str) -> Cursor:
        """The cursor that `state` describes, over data with this fingerprint.

        Raises DataError where the data is not the one the state was made with.
        """
        if state["fingerprint"] != fingerprint:
            raise DataError(
                f"the data changed since the checkpoint, which was made with {state['num_rows']} rows "
                f"of fingerprint {state['fingerprint']}; the data now has {fingerprint}; "
                "bring back the old data, or start a new run"
            )
        cursor = cls(state["num_rows"], state["seed"], fingerprint=fingerprint)
        cursor._start_epoch(state["epoch"])
        cursor._position = state["position"]
        return cursor

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._position = epoch, 0
        rng = np.random.default_rng(np.random.SeedSequence([self._seed, epoch]))
        self._order = rng.permutation(self.num_rows).astype(np.int64)


class StreamingRows(Generic[T]):
    """Endless batches from a source that is read as it goes, in the source's order, epoch after epoch.

    `open_rows` begins the source anew, for instance `lambda: demonstrations(read_rows(source,
    resolve=resolve))`. No row is read before it is taken. There is no shuffling: shuffle the files
    themselves.
    """

    def __init__(self, open_rows: Callable[[], Iterator[T]]) -> None:
        self._open_rows = open_rows
        self._fingerprint: str
        self._rows: Iterator[T]
        self._start_epoch(0)

    @property
    def epoch(self) -> int:
        """How many times the source has been read to its end."""
        return self._epoch

    def take(self, num: int) -> list[T]:
        """The next `num` rows. Raises DataError where the source has none, and what reading it raises."""
        return [self._next() for _ in range(num)]

    def state(self) -> dict[str, Any]:
        """Plain values for the manifest: the epoch, the rows taken in it, and the fingerprint of these."""
        return {"epoch": self._epoch, "consumed": self._consumed, "fingerprint": self._fingerprint}

    @classmethod
    def restore(cls, state: Mapping[str, Any], open_rows: Callable[[], Iterator[T]]) -> StreamingRows[T]:
        """Reads past the rows that were taken. Raises DataError where they are not the ones they were."""
        stream = cls(open_rows)
        stream._start_epoch(state["epoch"])
        for _ in range(state["consumed"]):
            if stream._read() is None:
                break
        if stream.state() != dict(state):
            raise DataError(
                f"the data changed since the checkpoint: its first {state['consumed']} rows are not the ones "
                f"taken before (found {stream._consumed} rows, fingerprint {stream._fingerprint}, "
                f"expected {state['fingerprint']}); bring back the old data, or start a new run"
            )
        return stream

    def _next(self) -> T:
        found = self._read()
        if found is None:
            if self._consumed == 0:
                raise DataError("the streaming source has no rows; write some, or name another")
            self._start_epoch(self._epoch + 1)
            return self._next()
        return found[0]

    def _read(self) -> tuple[T] | None:
        """The next row of this epoch in a tuple; None at its end."""
        for row in self._rows:
            self._consumed += 1
            self._fingerprint = extend_fingerprint(self._fingerprint, row)
            return (row,)
        return None

    def _start_epoch(self, epoch: int) -> None:
        self._epoch, self._consumed = epoch, 0
        self._fingerprint = ""  # of the rows taken in this epoch
        self._rows = iter(self._open_rows())
