"""Rows of one file on disk, read as they are asked for, each with the place it came from.

JSONL is read line by line and Parquet batch by batch, so their size does not matter. A `.json` file that is
one list is parsed whole: keep what does not fit in memory as JSONL or Parquet.
"""

from __future__ import annotations

import codecs
import gzip
import json
import textwrap
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayalign.errors import DataError

MAX_ROW_BYTES = 64 * 2**20  # of a line of JSONL: a file that unpacks to more on one line holds no rows
MAX_DOCUMENT_BYTES = 2 * 2**30  # of a .json unpacked, which is parsed whole
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row was found, for messages: `demos.jsonl:17`, or `demos.parquet: row 17`, from 1 on."""

    source: str
    number: int
    unit: Literal["line", "row"] = "row"

    def __str__(self) -> str:
        return f"{self.source}:{self.number}" if self.unit == "line" else f"{self.source}: row {self.number}"


PlacedRow = tuple[Place, Row]


def data_suffix(path: Path) -> str | None:
    """The ending that says how a file is read; None where it is not one of SUFFIXES."""
    name = path.name.lower()
    return next((suffix for suffix in SUFFIXES if name.endswith(suffix)), None)


def read_file(path: Path) -> Iterator[PlacedRow]:
    """The rows of a JSON, JSONL or Parquet file, lazily.

    Raises DataError at once for an ending it does not know, and while reading for a row that is none.
    """
    suffix = data_suffix(path)
    if suffix is None:
        raise DataError(
            f"{path}: cannot tell what this file holds; its name must end in {', '.join(SUFFIXES)}"
        )
    if suffix == ".parquet":
        return _read_parquet(path)
    return _read_jsonl(path) if suffix.startswith(".jsonl") else _read_json(path)


def _read_jsonl(path: Path) -> Iterator[PlacedRow]:
    for number, line in _lines(path, MAX_ROW_BYTES):
        place = Place(str(path), number, "line")
        yield place, _row(_parse(line, place), place)


def _read_json(path: Path) -> Iterator[PlacedRow]:
    """A list of rows, {"data": [...]}, or JSONL under the other name, as many tools write it."""
    first = next(_lines(path, MAX_DOCUMENT_BYTES), None)
    if first is None:
        return
    if _is_one_row(first[1]):
        yield from _read_jsonl(path)
        return
    document = _parse_document(path)
    rows = document.get("data") if isinstance(document, dict) else document
    if not isinstance(rows, list):
        raise DataError(f'{path}: expected a list of rows or {{"data": [...]}}, found {_kind(document)}')
    for number, value in enumerate(rows, start=1):
        place = Place(str(path), number)
        yield place, _row(value, place)


def _read_parquet(path: Path) -> Iterator[PlacedRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield Place(str(path), number), row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: cannot be read as Parquet ({one_line(error)}); write or fetch it again"
        ) from None


def _lines(path: Path, most: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. Bytes, because only \\n may end a line of JSONL.

    Raises DataError for a line of more than `most` bytes, which is never held whole.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(most + 1), b""), start=1):
                if len(line) > most:
                    raise DataError(f"{path}:{number}: a line of more than {most / 2**20:g} MiB; put each row on its own")
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        after = f" after line {number}" if number else ""
        raise DataError(
            f"{path}: damaged gzip file{after} ({one_line(error)}); write or fetch it again"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); check the disk and its permissions"
        ) from None


def _parse(line: bytes, place: Place) -> Any:
    try:
        return json.loads(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not valid UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
        raise DataError(f"{place}: not valid JSON ({why}); mend or remove the line") from None
    except (
        ValueError,
        RecursionError,
    ) as error:  # numbers of thousands of digits, thousands of nested brackets
        raise DataError(f"{place}: not valid JSON ({one_line(error)}); mend or remove the line") from None


def _parse_document(path: Path) -> Any:
    lines, num_bytes = {}, 0
    for number, read in _lines(path, MAX_DOCUMENT_BYTES):
        lines[number] = read
        num_bytes += len(read)
        if num_bytes > MAX_DOCUMENT_BYTES:
            most = f"{MAX_DOCUMENT_BYTES / 2**30:g} GiB"
            raise DataError(f"{path}: more than {most}, and a .json is parsed whole; write it as JSONL or Parquet")
    # Blank lines go back in, so that the parser's line numbers are the file's.
    text = b"".join(lines.get(number, b"\n") for number in range(1, max(lines) + 1))
    try:
        return json.loads(text.decode("utf-8"))
    except json.JSONDecodeError as error:
        why = f"{error.msg} at column {error.colno}"
        raise DataError(
            f"{path}:{error.lineno}: not valid JSON ({why}); mend the file at this line"
        ) from None
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not valid UTF-8 ({error.reason}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({one_line(error)}); mend the file") from None


def _is_one_row(line: bytes) -> bool:
    if not line.lstrip().startswith(b"{"):
        return False  # a list on one line may be large: do not parse it twice
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get("data"), list)


def _row(value: Any, place: Place) -> Row:
    if not isinstance(value, dict):
        raise DataError(f'{place}: a row must be an object such as {{"prompt": ...}}, found {_kind(value)}')
    return value


def _kind(value: Any) -> str:
    names = {list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, dict):
        return f"an object with the keys {', '.join(map(str, list(value)[:8])) or '(none)'}"
    return names.get(type(value), "null")


def one_line(error: BaseException) -> str:
    """An error's text on one line of bounded length, for a message that quotes it."""
    text = " ".join(str(error).split()) or type(error).__name__
    return textwrap.shorten(text, 240, placeholder="...")
