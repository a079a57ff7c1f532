"""Where records go: what a sink is, and metrics.jsonl; TensorBoard, Weights & Biases and MLflow have files of their own.

A record holds the fields in `FIELDS` and, under any other key, a number; the `step` that a sink is given counts over all
stages of the run. Every tracker gets the same names, STAGE/NAME.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from rayalign.errors import DataError, UserError
from rayalign.telemetry.tables import Table

Record = Mapping[str, float | int | str | None]

FIELDS = ("stage", "round", "step", "global_step", "time_s", "total_steps")

MAX_FAULT = 200  # characters of another library's message


class Sink(Protocol):
    """Takes records until it is closed."""

    def log(self, record: Record, step: int) -> None:
        """Takes one record."""

    def table(self, name: str, table: Table, step: int) -> None:
        """Takes a table, such as samples, under a name that it has at every step."""

    def close(self, failed: bool = False) -> None:
        """Writes out what is left; `failed` tells a tracker how the run ended."""


class JsonlSink:
    """One JSON object per line, written out at once; an existing file is continued.

    JSON has no NaN and no infinity: such a value is null, and `nonfinite` holds its name and what it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _drop_torn_line(path)
            self._file = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._fault(error) from None

    def log(self, record: Record, step: int) -> None:
        nonfinite = {name: str(value) for name, value in record.items() if not _is_json(value)}
        line: dict[str, Any] = {name: None if name in nonfinite else value for name, value in record.items()}
        if nonfinite:
            line["nonfinite"] = nonfinite
        try:
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            raise self._fault(error) from None

    def table(self, name: str, table: Table, step: int) -> None:
        """Not here: stages keep their samples in files of their own."""

    def keep(self, stage: str, num: int) -> None:
        """Rewrites the file without what a stage logged after its first `num` records."""
        seen = 0
        aside = self._path.with_name(f".{self._path.name}.part")
        try:
            with self._path.open(encoding="utf-8") as old, aside.open("w", encoding="utf-8") as new:
                for line in old:
                    own = json.loads(line)["stage"] == stage
                    seen += own
                    if not own or seen <= num:
                        new.write(line)
            self._file.close()
            aside.replace(self._path)
            self._file = self._path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise self._fault(error) from None

    def close(self, failed: bool = False) -> None:
        self._file.close()

    def _fault(self, error: OSError) -> UserError:
        return UserError(
            f"{self._path}: cannot be written ({error.strerror}); free space there or set another run_dir"
        )


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics.jsonl, oldest first; a last line that a killed run left torn is skipped."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            record = parse_record(line)
            if record is None:
                raise DataError(f"{path}:{number}: not a record of metrics; move this file away to start a new one")
            yield record


def parse_record(line: bytes) -> dict[str, Any] | None:
    """A whole line of metrics.jsonl; None where it is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if _is_record(record) else None


def _is_record(record: Any) -> bool:
    """Whether it has the fields that a run goes on from."""
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
        return False
    counts, time_s = (record.get("step"), record.get("global_step")), record.get("time_s")
    return all(type(count) is int and abs(count) < 2**53 for count in counts) and type(time_s) in (int, float)


def curves(record: Record) -> dict[str, float]:
    """The record's numbers under STAGE/NAME."""
    numbers = {name: value for name, value in record.items() if name not in FIELDS}
    return {f"{record['stage']}/{name}": float(v) for name, v in numbers.items() if isinstance(v, (int, float))}


def stored_id(path: Path, make: Callable[[], str]) -> str:
    """The id in the file, or a new one that is written there."""
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    new = make()
    path.write_text(f"{new}\n", encoding="utf-8")
    return new


def not_installed(package: str, requirement: str, otherwise: str) -> UserError:
    """What is said where a tracker's package is absent."""
    return UserError(
        f"telemetry asks for {package}, which is not installed: pip install '{requirement}', or {otherwise}"
    )


def one_line(error: Exception) -> str:
    """Another library's message, short and on one line."""
    words = " ".join(str(error).split()).rstrip(".")
    return words if len(words) <= MAX_FAULT else words[: MAX_FAULT - 4] + " ..."


def _is_json(value: float | int | str | None) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _drop_torn_line(path: Path) -> None:
    """Cuts off a last line without its end, left by a run that was killed while it wrote."""
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
