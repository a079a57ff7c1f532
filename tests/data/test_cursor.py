"""The cursor is endless, fair within an epoch, resumes exactly, and refuses other data."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayalign.config.data import DataSource
from rayalign.data.cursor import Cursor, StreamingRows
from rayalign.data.files import Place
from rayalign.data.fingerprint import fingerprint
from rayalign.data.shapes import demonstrations
from rayalign.data.sources import read_rows
from rayalign.errors import DataError
from rayalign.types import Demonstration, Message, Preference, Ragged, Sequences, TokenizedPrompts

from .conftest import jsonl

TAKES = st.lists(st.integers(0, 15), max_size=8)


@given(st.integers(1, 12), st.integers(0, 5), TAKES)
def test_every_epoch_holds_every_row_once(num_rows, seed, takes):
    cursor = Cursor(num_rows, seed, fingerprint="f")
    rows = np.concatenate([np.empty(0, np.int64), *(cursor.take(num) for num in takes)])
    assert rows.dtype == np.int64
    assert len(rows) == sum(takes)
    for first in range(0, len(rows), num_rows):
        epoch = rows[first : first + num_rows].tolist()
        assert len(set(epoch)) == len(epoch)


@given(st.integers(1, 12), TAKES, TAKES)
def test_resuming_is_as_if_it_had_not_stopped(num_rows, before, after):
    cursor = Cursor(num_rows, 3, fingerprint="f")
    for num in before:
        cursor.take(num)
    state = json.loads(json.dumps(cursor.state()))
    resumed = Cursor.restore(state, fingerprint="f")
    for num in after:
        assert resumed.take(num).tolist() == cursor.take(num).tolist()
    assert resumed.state() == cursor.state()


def test_how_it_is_taken_does_not_matter():
    one, many = Cursor(7, 0, fingerprint="f"), Cursor(7, 0, fingerprint="f")
    assert one.take(30).tolist() == [row for _ in range(10) for row in many.take(3).tolist()]


def test_epochs_and_seeds_have_their_own_orders():
    cursor = Cursor(50, 0, fingerprint="f")
    first, second = cursor.take(50).tolist(), cursor.take(50).tolist()
    assert first != second
    assert Cursor(50, 1, fingerprint="f").take(50).tolist() != first


def test_other_data_is_refused():
    state = Cursor(7, 0, fingerprint="old").state()
    with pytest.raises(DataError) as caught:
        Cursor.restore(state, fingerprint="new")
    assert str(caught.value) == (
        "the data changed since the checkpoint, which was made with 7 rows of fingerprint old; "
        "the data now has new; bring back the old data, or start a new run"
    )


def test_no_rows():
    with pytest.raises(DataError, match="there are no rows to draw from"):
        Cursor(0, 0, fingerprint="f")


def sequences(response=4):
    tokens = Ragged.from_list([[1, 2, 3], [1, 2, response, 5]])
    return Sequences(tokens, np.array([2, 2]), np.array([0, 0]), np.array([True, True]))


def test_fingerprint_is_stable_across_machines_and_versions():
    """Written down: a change of these strings breaks every checkpoint."""
    rows = [Demonstration((Message("user", "ü"),), "a"), Preference((Message("user", "q"),), "a", "b")]
    assert fingerprint(rows) == FINGERPRINT_OF_ROWS
    assert fingerprint(sequences()) == FINGERPRINT_OF_TOKENS


FINGERPRINT_OF_ROWS = "214608320ebc3e31f81c2f866c31322c"
FINGERPRINT_OF_TOKENS = "6c932cceeda23a610ab759c59ced59f1"


def test_fingerprint_sees_content_and_order_but_not_places_or_integer_width():
    one, two = Demonstration((Message("user", "a"),), "b"), Demonstration((Message("user", "c"),), "d")
    assert fingerprint([one, two]) != fingerprint([two, one])
    assert fingerprint([one]) != fingerprint([Demonstration((Message("user", "ab"),), "")])
    assert fingerprint([(Place("x", 1), one)]) == fingerprint([(Place("y", 9), one)]) == fingerprint([[one]])
    assert fingerprint(iter([one])) == fingerprint([one])
    assert fingerprint(sequences()) != fingerprint(sequences(response=6))
    narrow = Ragged(np.array([1, 2], np.int32), np.array([2]))
    assert fingerprint(narrow) == fingerprint(Ragged.from_list([[1, 2]]))
    assert fingerprint(narrow) != fingerprint(Ragged.from_list([[1], [2]]))
    assert fingerprint(TokenizedPrompts(narrow, np.array([0]))) != fingerprint(
        TokenizedPrompts(narrow, np.array([1]))
    )


class Counted:
    """A source of numbers that knows how many were read of it, in all its epochs."""

    def __init__(self, num: int) -> None:
        self.num, self.num_read, self.num_opened = num, 0, 0

    def __call__(self):
        self.num_opened += 1
        for i in range(self.num):
            self.num_read += 1
            yield {"n": i}


def numbers(rows):
    return [row["n"] for row in rows]


def test_a_stream_is_not_read_past_what_was_taken():
    source = Counted(10)
    stream = StreamingRows(source)
    assert source.num_read == 0
    assert numbers(stream.take(3)) == [0, 1, 2]
    assert source.num_read == 3
    assert numbers(stream.take(7)) == [3, 4, 5, 6, 7, 8, 9]
    assert (source.num_read, source.num_opened) == (10, 1)


def test_a_stream_begins_anew():
    stream = StreamingRows(Counted(3))
    assert numbers(stream.take(7)) == [0, 1, 2, 0, 1, 2, 0]
    assert stream.state()["epoch"] == 2
    assert stream.state()["consumed"] == 1


@given(st.integers(1, 6), TAKES, TAKES)
def test_a_stream_resumes_exactly(num_rows, before, after):
    stream = StreamingRows(Counted(num_rows))
    for num in before:
        stream.take(num)
    state = json.loads(json.dumps(stream.state()))
    resumed = StreamingRows.restore(state, Counted(num_rows))
    for num in after:
        assert numbers(resumed.take(num)) == numbers(stream.take(num))
    assert resumed.state() == stream.state()


def test_a_stream_over_other_data_is_refused():
    stream = StreamingRows(Counted(10))
    stream.take(4)
    with pytest.raises(
        DataError, match="its first 4 rows are not the ones taken before .*; bring back the old data"
    ):
        StreamingRows.restore(stream.state(), lambda: iter({"n": i + 1} for i in range(10)))
    with pytest.raises(DataError, match=r"its first 4 rows are not the ones taken before \(found 2 rows"):
        StreamingRows.restore(stream.state(), Counted(2))
    StreamingRows.restore(stream.state(), Counted(5))  # rows that were not taken yet may change


def test_an_empty_stream():
    with pytest.raises(DataError, match="the streaming source has no rows"):
        StreamingRows(Counted(0)).take(1)


def test_a_stream_of_a_file_reads_line_by_line(write):
    """The fourth line is malformed; three rows can be taken, and a moved file resumes."""
    text = jsonl([{"prompt": f"p{i}", "response": "r"} for i in range(3)])

    def rows_of(path: Path):
        source = DataSource(path=str(path), streaming=True)
        return StreamingRows(lambda: demonstrations(read_rows(source, resolve=Path)))

    broken = write("broken.jsonl", text + "{not json\n")
    stream = rows_of(broken)
    taken = stream.take(3)
    assert [str(place) for place, _ in taken] == [f"{broken}:{i}" for i in (1, 2, 3)]
    with pytest.raises(DataError, match=r"broken\.jsonl:4: not valid JSON"):
        stream.take(1)
    moved = rows_of(write("moved/mended.jsonl", text + jsonl([{"prompt": "p3", "response": "r"}])))
    moved.take(3)
    assert moved.state()["fingerprint"] == stream.state()["fingerprint"]
