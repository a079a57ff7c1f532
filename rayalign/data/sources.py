"""A data source of the config as a stream of rows: a file, a folder of files, a saved data set or a hub name.

Nothing is read before it is asked for, and nothing is written: local files are opened for reading only (a hub
data set goes to Hugging Face's own cache, as always).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rayalign.config.data import DataSource
from rayalign.data.files import SUFFIXES, Place, PlacedRow, Row, data_suffix, one_line, read_file
from rayalign.data.hub import quiet_hub
from rayalign.data.shapes import COLUMNS
from rayalign.errors import ConfigError, DataError

MAX_ENTRIES = 10_000  # of a folder of data; whoever names / does not mean to have all of it searched

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(:[\w.-]+)?")
_SPLIT_WORDS = {"train", "test", "validation", "valid", "val", "dev", "eval"}
_OTHER_FILES = {".csv", ".tsv", ".txt", ".arrow", ".gz", ".zip", ".tar", ".yaml", ".xlsx", ".bin", ".gguf"}
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json"}


def read_rows(source: DataSource, *, resolve: Callable[[str], Path | str]) -> Iterator[PlacedRow]:
    """The rows of `source` with their places, read as they are taken.

    `resolve` turns the path of the config into a local path or a hub name (`owner/name`, or
    `owner/name:config`); it is where stage references become folders. Of a folder whose files or subfolders
    carry split names (`train.jsonl`, `test-00000.parquet`) only those of `source.split` are read; where none
    does, all are.

    Raises DataError with one line for a path that is not there, a folder without data, an unknown ending, an
    unknown split, no rows, a malformed row (with file and line) and a hub that cannot be reached; ConfigError
    for a column name that means nothing here. What concerns the path is raised at once, what concerns rows
    when they are read.
    """
    unknown = sorted(set(source.columns) - set(COLUMNS))
    if unknown:
        raise ConfigError(
            f"data columns: {unknown[0]!r} is not a column we read; the left side of columns is one of "
            f"{', '.join(COLUMNS)} and the right side is yours"
        )
    rows = _open(resolve(source.path), source)
    return _renamed(_some(islice(rows, source.limit), source.path), source.columns)


def could_be_hub_name(location: str) -> bool:
    """Whether a location that is not on this disk may be a data set (or a model) of the Hugging Face hub."""
    path = Path(location)
    named_as_file = data_suffix(path) is not None or path.suffix.lower() in _OTHER_FILES
    return not named_as_file and _HUB_NAME.fullmatch(location) is not None


def _open(location: Path | str, source: DataSource) -> Iterator[PlacedRow]:
    path = Path(location).expanduser()
    if os.path.isdir(path):
        return _read_folder(path, source.split)
    if os.path.isfile(path):
        return read_file(path)
    if isinstance(location, str) and could_be_hub_name(location):
        return _read_hub(location, source)
    relative = "" if path.is_absolute() else f", which is relative to {Path.cwd()}"
    raise DataError(f"{location}: no such file or folder; check the path{relative}")


def _read_folder(folder: Path, split: str) -> Iterator[PlacedRow]:
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return _read_saved(folder, split)
    files = _files_of_split(folder, _data_files(folder), split)
    return (placed for file in files for placed in read_file(file))


def _data_files(folder: Path) -> list[Path]:
    entries = list(islice(folder.rglob("*"), MAX_ENTRIES + 1))
    if len(entries) > MAX_ENTRIES:
        raise DataError(f"{folder}: more than {MAX_ENTRIES} files and folders in it; name the one that holds the data")
    found = sorted(path for path in entries if data_suffix(path) and os.path.isfile(path))
    files = [
        path for path in found if path.name not in _NOT_ROWS and not _is_hidden(path.relative_to(folder))
    ]
    if not files:
        raise DataError(
            f"{folder}: no data files in this folder; their names must end in {', '.join(SUFFIXES)}"
        )
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _files_of_split(folder: Path, files: list[Path], split: str) -> list[Path]:
    words = {file: _split_words(file.relative_to(folder), split) for file in files}
    named = set().union(*words.values())
    if split in named:
        return [file for file in files if split in words[file]]
    if named or split != "train":
        there = ", ".join(sorted(named)) or "files without a split in their names"
        raise DataError(f"{folder}: no files of the split {split!r} (there are: {there}); set split")
    return files


def _split_words(path: Path, split: str) -> set[str]:
    """The split names in a path: `data/train-00000-of-00002.parquet` has {"train"}."""
    words = set(re.split(r"[^a-z0-9]+", str(path).lower()))
    return words & _SPLIT_WORDS | ({split} if split.lower() in words else set())


def _read_saved(folder: Path, split: str) -> Iterator[PlacedRow]:
    """What `datasets.save_to_disk` wrote: memory-mapped, so it is never loaded whole."""
    import datasets
    import pyarrow

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{folder}: cannot be read as a saved data set ({one_line(error)}); save it again"
        ) from None
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(f"{folder}: no split {split!r} (there are: {', '.join(found)}); set split")
        found = found[split]
    return _numbered(found, str(folder))


def _read_hub(location: str, source: DataSource) -> Iterator[PlacedRow]:
    import datasets

    name, _, config = location.partition(":")
    with _hub_errors(location):
        found = datasets.load_dataset(name, config or None, split=source.split, streaming=source.streaming)
    return _guarded(_numbered(found, location), location)


def _guarded(rows: Iterator[PlacedRow], location: str) -> Iterator[PlacedRow]:
    """A streaming hub data set meets the network while it is read."""
    with _hub_errors(location):
        yield from rows


@contextlib.contextmanager
def _hub_errors(location: str) -> Iterator[None]:
    """Whatever the hub cannot give becomes one line."""
    import datasets

    try:
        with quiet_hub():
            yield
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{location}: no such file or folder, and the hub does not give it ({one_line(error)}); "
            "check the path, or the name, its split and the network"
        ) from None


def _numbered(rows: Iterable[Row], name: str) -> Iterator[PlacedRow]:
    return ((Place(name, number), row) for number, row in enumerate(rows, start=1))


def _some(rows: Iterator[PlacedRow], path: str) -> Iterator[PlacedRow]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{path}: holds no rows; write some, or name another file")
    yield first
    yield from rows


def _renamed(rows: Iterator[PlacedRow], columns: dict[str, str]) -> Iterator[PlacedRow]:
    return ((place, _rename(row, columns, place)) for place, row in rows) if columns else rows


def _rename(row: Row, columns: dict[str, str], place: Place) -> Row:
    """Our names for theirs; a column of theirs that already had our name gives way."""
    missing = [theirs for theirs in columns.values() if theirs not in row]
    if missing:
        raise DataError(
            f"{place}: no column {missing[0]!r} (there are: {', '.join(row)}); mend the columns setting"
        )
    kept: dict[str, Any] = {key: value for key, value in row.items() if key not in columns.values()}
    return kept | {ours: row[theirs] for ours, theirs in columns.items()}
