"""Every kind of source gives the same rows; every bad one gives one line that says where and what to do."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rayalign.config.data import DataSource
from rayalign.data.files import Place
from rayalign.data.sources import read_rows
from rayalign.errors import ConfigError, DataError

from .conftest import jsonl

ROWS = [{"prompt": f"p{i}", "response": f"r{i} ü"} for i in range(5)]


def read(path: object, *, resolve=Path, **settings):
    return list(read_rows(DataSource(path=str(path), **settings), resolve=resolve))


def values(path: object, **settings):
    return [row for _, row in read(path, **settings)]


def fails(path: object, error=DataError, **settings) -> str:
    with pytest.raises(error) as caught:
        read(path, **settings)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "A.JSONL", "a.json", "a.json.gz"])
def test_json_lines(write, name):
    found = read(write(name, jsonl(ROWS)))
    assert [row for _, row in found] == ROWS
    assert str(found[2][0]).endswith(f"{name}:3")


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
@pytest.mark.parametrize("content", [ROWS, {"data": ROWS}, {"version": 1, "data": ROWS}])
@pytest.mark.parametrize("indent", [None, 2])
def test_json_list_and_data_object(write, name, content, indent):
    found = read(write(name, json.dumps(content, indent=indent)))
    assert [row for _, row in found] == ROWS
    assert str(found[2][0]).endswith(f"{name}: row 3")


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS * 200), path)
    found = read(path)
    assert [row for _, row in found] == ROWS * 200
    assert found[999][0] == Place(str(path), 1000)


def test_nested_rows_come_back_from_parquet_as_they_were(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == rows


def test_bom_blank_lines_crlf_and_unicode_line_ends(write):
    path = write("a.jsonl", b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n  \n{"prompt": "b\xe2\x80\xa8c"}\n')
    found = read(path)
    assert [row["prompt"] for _, row in found] == ["a", "b\u2028c"]
    assert [place.number for place, _ in found] == [1, 4]


def test_folder_reads_its_files_in_order_and_nothing_else(write, tmp_path):
    write("d/b.jsonl", jsonl(ROWS[2:4]))
    write("d/a.jsonl.gz", jsonl(ROWS[:2]))
    write("d/sub/c.json", json.dumps(ROWS[4:]))
    write("d/README.md", "# no data")
    write("d/.cache/x.jsonl", jsonl([{"hidden": 1}]))
    write("d/dataset_info.json", "{}")
    assert values(tmp_path / "d") == ROWS


def test_folder_of_splits(write, tmp_path):
    write("d/data/train-00000-of-00002.jsonl", jsonl(ROWS[:1]))
    write("d/data/train-00001-of-00002.jsonl", jsonl(ROWS[1:2]))
    write("d/test/x.jsonl", jsonl(ROWS[2:3]))
    write("d/harmless/part.jsonl", jsonl(ROWS[3:4]))
    assert values(tmp_path / "d") == ROWS[:2]
    assert values(tmp_path / "d", split="test") == ROWS[2:3]
    assert values(tmp_path / "d", split="harmless") == ROWS[3:4]
    assert "no files of the split 'validation' (there are: test, train)" in fails(
        tmp_path / "d", split="validation"
    )


def test_split_of_a_folder_without_splits(write, tmp_path):
    write("d/a.jsonl", jsonl(ROWS))
    assert values(tmp_path / "d") == ROWS
    assert "no files of the split 'test'" in fails(tmp_path / "d", split="test")


def test_saved_data_set(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    both = {"train": datasets.Dataset.from_list(ROWS), "test": datasets.Dataset.from_list(ROWS[:1])}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "two")
    before = sorted(tmp_path.rglob("*"))
    assert values(tmp_path / "one") == ROWS
    assert values(tmp_path / "two") == ROWS
    assert values(tmp_path / "two", split="test") == ROWS[:1]
    assert "no split 'dev' (there are: train, test); set split" in fails(tmp_path / "two", split="dev")
    assert sorted(tmp_path.rglob("*")) == before, "reading wrote something"


def test_broken_saved_data_set(write, tmp_path):
    write("d/state.json", "{}")
    assert "cannot be read as a saved data set" in fails(tmp_path / "d")


def test_limit_and_columns(write):
    path = write(
        "a.jsonl", jsonl([{"q": f"p{i}", "a": f"r{i}", "response": "old", "n": i} for i in range(5)])
    )
    found = values(path, limit=2, columns={"prompt": "q", "response": "a"})
    assert found == [{"n": i, "response": f"r{i}", "prompt": f"p{i}"} for i in range(2)]
    assert len(values(path, limit=100)) == 5


def test_a_column_may_serve_twice(write):
    path = write("a.jsonl", jsonl([{"text": "t"}]))
    assert values(path, columns={"prompt": "text", "response": "text"}) == [{"prompt": "t", "response": "t"}]


def test_missing_and_misspelt_columns(write):
    path = write("a.jsonl", jsonl(ROWS))
    message = fails(path, columns={"prompt": "question"})
    assert (
        message == f"{path}:1: no column 'question' (there are: prompt, response); mend the columns setting"
    )
    assert "'promt' is not a column we read" in fails(path, ConfigError, columns={"promt": "prompt"})


def test_malformed_line_names_file_and_line(write):
    path = write("a.jsonl", '{"prompt": "a"}\n\n{"prompt": "b"\n{"prompt": "c"}\n')
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(caught.value) == (
        f"{path}:3: not valid JSON (Expecting ',' delimiter at column 15); mend or remove the line"
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff\xfe"}\n', "a.jsonl:2: not valid UTF-8"),
        ("a.jsonl", "[1, 2]\n", 'a.jsonl:1: a row must be an object such as {"prompt": ...}, found a list'),
        ("a.jsonl", '"text"\n', "found a text"),
        ("a.jsonl", "null\n", "found null"),
        ("a.jsonl", "[" * 100_000, "a.jsonl:1: not valid JSON"),
        ("a.jsonl", '{"a": ' + "9" * 5000 + "}", "a.jsonl:1: not valid JSON"),
        ("a.jsonl.gz", '{"a": 1}\n{"a"\n', "a.jsonl.gz:2: not valid JSON"),
        ("a.json", '[\n {"a": 1},\n\n {"b": }\n]', "a.json:4: not valid JSON (Expecting value at column 8)"),
        ("a.json", b'[\n {"a": 1},\n {"b": "\xff"}\n]', "a.json:3: not valid UTF-8"),
        (
            "a.json",
            '{\n"a": 1\n}',
            'expected a list of rows or {"data": [...]}, found an object with the keys a',
        ),
        ("a.json", "[1]", "a.json: row 1: a row must be an object"),
        ("a.json", "3", "expected a list of rows"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.json", "[]", "holds no rows"),
        ("a.json", "", "holds no rows"),
        ("a.csv", "a,b\n", "its name must end in .jsonl, .jsonl.gz, .json, .json.gz, .parquet"),
        ("a.parquet", "PAR1 no", "cannot be read as Parquet"),
        ("a.parquet", "", "cannot be read as Parquet"),
    ],
)
def test_bad_files(write, name, content, expected):
    path = write(name, content)
    message = fails(path)
    assert expected in message
    assert str(path) in message


def test_empty_parquet(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"prompt": pyarrow.array([], pyarrow.string())}), tmp_path / "a.parquet"
    )
    assert "holds no rows" in fails(tmp_path / "a.parquet")


def test_damaged_gzip(tmp_path):
    whole = gzip.compress(jsonl([{"prompt": str(i) * 50} for i in range(500)]).encode())
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "none.jsonl.gz").write_bytes(b'{"prompt": "a"}\n')
    assert "damaged gzip file after line" in fails(tmp_path / "cut.jsonl.gz")
    assert "damaged gzip file" in fails(tmp_path / "none.jsonl.gz")


def test_paths_that_are_not_there(tmp_path, write):
    write("d/README.md", "no data")
    assert "no data files in this folder" in fails(tmp_path / "d")
    assert "no such file or folder; check the path" in fails(tmp_path / "x.jsonl")
    assert "no such file or folder; check the path" in fails("x.jsonl", resolve=str)
    assert "no such file or folder; check the path" in fails("../nowhere/x", resolve=str)
    assert "no such file or folder; check the path" in fails(
        "owner/name", resolve=Path
    )  # a Path is no hub name


def test_a_bad_path_is_an_error_before_the_first_row(tmp_path):
    with pytest.raises(DataError):
        read_rows(DataSource(path="x.jsonl"), resolve=lambda name: tmp_path / name)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = fails("some-owner/no-such-data", resolve=str)
    assert message.startswith(
        "some-owner/no-such-data: no such file or folder, and the hub does not give it ("
    )
    assert message.endswith("check the path, or the name, its split and the network")


def test_a_hub_name_reads_through_datasets(monkeypatch):
    asked = []

    def load(name, config, *, split, streaming):
        asked.append((name, config, split, streaming))
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    found = read("owner/name:main", resolve=str, split="test", streaming=True, limit=2)
    assert found == [(Place("owner/name:main", i + 1), ROWS[i]) for i in range(2)]
    assert asked == [("owner/name", "main", "test", True)]


def test_a_hub_that_breaks_off_is_one_line(monkeypatch):
    def rows():
        yield ROWS[0]
        raise ConnectionError("gone\naway")

    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **settings: rows())
    assert "(gone away)" in fails("owner/name", resolve=str)


def test_the_resolver_sees_the_path_as_written(write):
    path = write("a.jsonl", jsonl(ROWS))
    asked = []

    def resolve(location: str) -> Path:
        asked.append(location)
        return path

    assert values("stage:sample/samples.jsonl", resolve=resolve) == ROWS
    assert asked == ["stage:sample/samples.jsonl"]


def test_a_large_file_is_read_as_it_is_taken(tmp_path):
    """Line 3 is malformed: whoever reads two rows must not meet it, nor the megabytes after it."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"n": 1}\n{"n": 2}\nnot json\n' + '{"n": 3}\n' * 500_000)
    rows = read_rows(DataSource(path=str(path)), resolve=Path)
    assert [next(rows)[1], next(rows)[1]] == [{"n": 1}, {"n": 2}]
    with pytest.raises(DataError, match=r"a\.jsonl:3: not valid JSON"):
        next(rows)


def test_a_large_file_is_never_in_memory(tmp_path):
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with path.open("w") as stream:
        for _ in range(20_000):
            stream.write(json.dumps({"prompt": "x" * 1000}) + "\n")  # 20 MB
    tracemalloc.start()
    count = sum(1 for _ in read_rows(DataSource(path=str(path)), resolve=Path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 20_000
    assert peak < 1_000_000
