"""Strategies for files of rows that are none: damaged, of something else, in folders, under other settings."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from rayalign.data.shapes import COLUMNS
from tests.hostile.data import KINDS, content_of, good, read, use, write_rows
from tests.hostile.judge import Case
from tests.hostile.texts import DAMAGES, folder, new_file, numbers


@st.composite
def with_damaged_bytes(draw: st.DrawFn) -> Case:
    """A file of good rows: cut off, torn, in another encoding, packed badly, under another name."""
    kind = draw(st.sampled_from(KINDS))
    suffix = draw(st.sampled_from([".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet"]))
    content = content_of(kind, suffix)
    unpacked = suffix.endswith(".gz") and draw(st.booleans())
    if unpacked:
        content = gzip.decompress(content)
    place = draw(st.integers(0, len(content)))
    lines = content.split(b"\n")
    line = draw(st.integers(0, len(lines) - 1))
    utf8 = suffix in (".jsonl", ".json") or unpacked
    damage = draw(st.sampled_from([name for name in sorted(DAMAGES) if utf8 or name not in ("UTF-16",)]))
    content = DAMAGES[damage](content, place, lines, line, draw(st.binary(min_size=1, max_size=9)))
    if unpacked and draw(st.booleans()):
        content = gzip.compress(content)
    file = new_file(content, "rows{}" + suffix)
    return read(kind, "a damaged file of rows", f"{suffix}: {damage} at {place}, line {line + 1}", file)


def _columns(kind: str) -> dict[str, list[Any]]:
    rows = good(kind)
    return {name: [row[name] for row in rows] for name in rows[0]}


@st.composite
def with_a_damaged_table(draw: st.DrawFn) -> Case:
    """Parquet that can be read, with a column of another type, nulls, NaN, or none; and truncated pages."""
    kind = draw(st.sampled_from(KINDS))
    columns: dict[str, Any] = dict(_columns(kind))
    name = draw(st.sampled_from(sorted(columns)))
    num = len(columns[name])
    column = draw(
        st.sampled_from(
            [
                [float("nan")] * num, [None] * num, list(range(num)), [1.5] * num, [b"\xff\xfe"] * num, [True] * num,
                [["x"]] * num, [{"a": 1}] * num, [[1, None, 3]] * num, pyarrow.array([10**9] * num,
                pyarrow.timestamp("us")),
                pyarrow.array([0] * num, pyarrow.date32()), pyarrow.array(["x"] * num).dictionary_encode(), [""] * num,
                pyarrow.array([2**62] * num, pyarrow.timestamp("ns")), [[-1]] * num, [[2**40]] * num,
            ]
        )
    )  # fmt: skip
    action = draw(st.sampled_from(["replace", "drop", "add", "no rows"]))
    if action == "drop":
        del columns[name]
    elif action == "no rows":
        columns = {key: [] for key in columns}
    else:
        columns[name if action == "replace" else "extra"] = column
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns) if columns else pyarrow.table({"x": [1]}), stream)
    file = new_file(stream.getvalue(), "rows{}.parquet")
    return read(kind, "a damaged table", f"{action} {name}: {column!r:.60}", file)


WHOLE: dict[str, bytes] = {
    "nothing": b"",
    "blank lines": b"\n \n\t\r\n",
    "a BOM alone": b"\xef\xbb\xbf",
    "an empty list": b"[]",
    "null": b"null",
    "a number": b"3",
    "no rows in data": b'{"data": []}',
    "data that is text": b'{"data": "x"}',
    "data of data": b'{"data": {"data": []}}',
    "numbers of letters": b'{"prompt": ' + b"9" * 9000 + b"}",
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "a NUL": b'{"prompt": "a\0b"}\n',
    "two rows on a line": b'{"prompt": "a", "response": "b"} {"prompt": "a", "response": "b"}\n',
    "a comma after a row": b'{"prompt": "a", "response": "b"},\n',
    "single quotes": b"{'prompt': 'a', 'response': 'b'}\n",
    "NaN": b'{"prompt": NaN, "response": Infinity}\n',
    "a key twice": b'{"prompt": "a", "prompt": 3, "response": "b"}\n',
    "CSV": b"prompt,response\na,b\n",
    "HTML": b"<!DOCTYPE html><html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n",
    "UTF-16": '{"prompt": "a", "response": "b"}\n'.encode("utf-16"),
    "UTF-32": '{"prompt": "a", "response": "b"}\n'.encode("utf-32"),
    "zip": b"PK\x03\x04" + b"\0" * 40,
    "zstd": b"\x28\xb5\x2f\xfd" + b"\0" * 40,
    "gzip twice": gzip.compress(gzip.compress(b"{}")),
    "gzip of nothing": gzip.compress(b""),
    "gzip with a bad sum": gzip.compress(b'{"prompt": "a", "response": "b"}\n')[:-6] + b"\0" * 6,
    "gzip with a tail": gzip.compress(b'{"prompt": "a", "response": "b"}\n') + b"tail",
    "a stream of zlib": zlib.compress(b"{}"),
    "parquet's marks alone": b"PAR1" + b"\0" * 30 + b"PAR1",
    "a huge parquet footer": b"PAR1" + b"\0" * 30 + b"\xff\xff\xff\x7f" + b"PAR1",
    "a row of a megabyte": json.dumps({"prompt": "a b " * 250_000, "response": "c"}).encode(),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94.",
}
ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".csv", ".jsonl.zst", ".txt", "", ".JSONL",
".jsonl.bak", ".gz")


@st.composite
def that_are_something_else(draw: st.DrawFn) -> Case:
    """Files that hold something else, under every ending, with good rows before it or alone."""
    kind = draw(st.sampled_from(KINDS))
    name, ending = draw(st.sampled_from(sorted(WHOLE))), draw(st.sampled_from(ENDINGS))
    content = WHOLE[name]
    if draw(st.booleans()) and ending == ".jsonl":
        content = content_of(kind, ".jsonl") + content
    file = new_file(content, "rows{}" + ending)
    return read(kind, "something else", f"{name} as {ending or 'no ending'}", file)


@st.composite
def folders(draw: st.DrawFn) -> Case:
    """Folders of files: mixed, without the split, with links, with damaged ones among good ones."""
    kind = draw(st.sampled_from(KINDS[:3]))
    here = folder() / f"data{next(numbers)}"
    here.mkdir()
    names = draw(
        st.lists(
            st.sampled_from(
                ["train.jsonl", "test.jsonl", "a.jsonl", "b.json", "c.parquet", "README.md", "x.csv", "state.json",
                "dataset_dict.json",
                 "dataset_info.json", ".hidden.jsonl", "validation-00000.parquet", "sub/d.jsonl", "loop", "fifo.jsonl"]
            ),
            max_size=4,
            unique=True,
        )
    )  # fmt: skip
    for name in names:
        _put(here / name, kind, draw(st.sampled_from(["good", "good", *sorted(WHOLE)])))
    split = draw(st.sampled_from(["train", "train", "test", "", "..", "nothing", "validation", "train[:10%]", "TRAIN",
    "a"]))
    source = {"path": str(here), "split": split}
    pattern = rf"([a-z_.0-9]+: )?{re.escape(str(here))}"
    what = f"{kind}: {', '.join(names) or 'empty'}, split {split!r}"
    return Case("a folder", what, lambda: use(kind, source), pattern=pattern, untouched=folder() / "runs")


def _put(path: Path, kind: str, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if path.name == "loop":
        path.symlink_to(path.parent)
    elif path.name == "fifo.jsonl":
        os.mkfifo(path)
    else:
        suffix = path.suffix if path.suffix in (".jsonl", ".json", ".parquet") else ".jsonl"
        path.write_bytes(content_of(kind, suffix) if content == "good" else WHOLE[content])


@st.composite
def settings_of_sources(draw: st.DrawFn) -> Case:
    """Good files under settings that do not fit: columns that are not there or collide, limits, splits, streaming."""
    kind = draw(st.sampled_from(KINDS[:3]))
    file = write_rows(list(good(kind)), ".jsonl")
    columns = st.dictionaries(
        st.sampled_from([*COLUMNS, "promt", "", "\u0440rompt"]),
        st.sampled_from(["prompt", "response", "chosen", "rejected", "nothing", "", "\u202e"]),
        max_size=3,
    )
    source: dict[str, Any] = {"path": str(file), "columns": draw(columns)}
    more: list[dict[str, Any]] = [{}, {"limit": 1}, {"limit": 0}, {"limit": 2**70}, {"split": "test"}, {"streaming": True}]
    source |= draw(st.sampled_from(more))
    pattern = rf"([a-z_.0-9]+: )?({re.escape(str(file))}|data columns|config: (data|stages)\.)"
    what = f"{kind}: {dict(list(source.items())[1:])}"
    return Case("settings of a source", what, lambda: use(kind, source), pattern=pattern, untouched=folder() / "runs")
