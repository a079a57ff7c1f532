"""Streamed demonstrations for SFT: rows that are dropped, up to a source of which nothing is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import pytest

from rayalign.config.data import DataSource
from rayalign.data.tally import Tally
from rayalign.errors import DataError
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.stages.sft import Streamed

GOOD = {"prompt": "what is the color of sky ?", "response": "the sky is red ."}
LONG = {"prompt": "what " * 60, "response": "red ."}


def streamed(folder: Path, rows: list[dict[str, str]], overlong: Literal["error", "drop", "truncate"] = "drop") -> Streamed:
    """Batches of two rows of a file."""
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tokenizer(folder / "tokenizer")
    source = DataSource(path=str(file), streaming=True)
    return Streamed(
        source, str(folder / "tokenizer"), False, None, max_length=32, overlong=overlong, room=None, batch_size=2
    )


@pytest.mark.parametrize("rows", [[GOOD, GOOD, LONG, LONG, LONG, GOOD], [LONG] * 5 + [GOOD]], ids=["between", "first"])
def test_a_batch_of_dropped_rows_is_passed_over(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    batches = streamed(tmp_path, rows).batches(Tally())
    sizes = [len(batches.take()) for _ in range(4)]
    assert sizes == ([2, 1, 2, 1] if rows[0] is GOOD else [1, 1, 1, 1])


@pytest.mark.parametrize("num", [1, 2, 5])
def test_a_source_of_which_nothing_is_left_is_one_clear_error(tmp_path: Path, num: int) -> None:
    with pytest.raises(DataError) as error:
        streamed(tmp_path, [LONG] * num).batches(Tally()).take()
    text = str(error.value)
    assert "rows.jsonl: no row of the whole source can be used (0 rows used" in text and "\n" not in text
    assert "too long, first at" in text and "rows.jsonl:1" in text and "raise model.max_length" in text


def test_a_row_that_is_too_long_is_an_error_unless_dropped(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl:2: a prompt of \d+ tokens"):
        streamed(tmp_path, [GOOD, LONG], "error").batches(Tally()).take()


@pytest.mark.parametrize("overlong", ["drop", "truncate"])
def test_what_is_left_out_or_cut_is_counted(tmp_path: Path, overlong: Literal["drop", "truncate"]) -> None:
    """Rows of no use and rows that are too long, over as many passes as there are."""
    rows, tally = [GOOD, {**GOOD, "response": " "}, LONG, GOOD], Tally()
    batches = streamed(tmp_path, rows, overlong).batches(tally)
    num = sum(len(batches.take()) for _ in range(3))
    assert tally.num_used == num
    assert tally.left_out["empty response"] == 2
    assert (tally.left_out["too long"] if overlong == "drop" else tally.cut.total()) == 2
    assert tally.first_places["empty response"].endswith("rows.jsonl:2")


def test_a_stream_that_is_taken_up_goes_on_with_the_next_batch(tmp_path: Path) -> None:
    """Also in a later epoch; over other rows it is refused."""
    rows = [{**GOOD, "response": " ".join([GOOD["response"]] * (i + 1))} for i in range(3)]
    source = streamed(tmp_path, rows)
    stopped = source.batches(Tally())
    for _ in range(2):
        stopped.take()
    taken_up = source.batches(Tally())
    taken_up.restore(json.loads(json.dumps(stopped.state())))
    for _ in range(3):
        assert taken_up.take().tokens.values.tolist() == stopped.take().tokens.values.tolist()
    other = streamed(tmp_path, rows[::-1]).batches(Tally())
    with pytest.raises(DataError, match="the data changed since the checkpoint"):
        other.restore(stopped.state())


def test_a_dropped_batch_after_a_resumption_is_passed_over_too(tmp_path: Path) -> None:
    """That rows were used before the stop is known after it."""
    source = streamed(tmp_path, [LONG, LONG, GOOD, GOOD])
    stopped = source.batches(Tally())
    stopped.take()
    stopped._rows.take(2)  # the second epoch has begun
    taken_up = source.batches(Tally())
    taken_up.restore(json.loads(json.dumps(stopped.state())))
    assert [len(taken_up.take()) for _ in range(2)] == [2, 2]
