"""metrics.jsonl as it grows, for who reads it while a run writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rayalign.errors import DataError
from rayalign.telemetry.sinks import parse_record


class GrowingRecords:
    """The records of a file that another process appends to; a line without its end is waited for.

    A run that goes on from a checkpoint replaces the file: then all of it is read again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file_id: int | None = None
        self._offset = self._line = 0

    def poll(self) -> tuple[bool, list[dict[str, Any]]]:
        """(whether it was replaced, and is read from its start again, the records that were not given yet).

        Nothing where there is no file. Raises DataError for a line that is no record.
        """
        try:
            with self._path.open("rb") as file:
                anew = self._is_another(file.fileno())
                file.seek(self._offset)
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return False, []
        self._offset += sum(len(line) + 1 for line in lines)
        return anew, [self._record(line) for line in lines]

    def written_at(self) -> float | None:
        """When the file was last written to, in seconds of `time.time`."""
        try:
            return self._path.stat().st_mtime
        except FileNotFoundError:
            return None

    def _is_another(self, descriptor: int) -> bool:
        """Whether it is another file than the one read before, of which nothing counts any more."""
        found = os.fstat(descriptor)
        if found.st_ino == self._file_id and found.st_size >= self._offset:
            return False
        was_there = self._file_id is not None
        self._file_id, self._offset, self._line = found.st_ino, 0, 0
        return was_there

    def _record(self, line: bytes) -> dict[str, Any]:
        self._line += 1
        record = parse_record(line)
        if record is None:
            raise DataError(f"{self._path}:{self._line}: not a record of metrics; is this the folder of a run?")
        return record
