"""Streamed demonstrations through the command line: what the stream leaves out is told once, when it has been read."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import ROWS, Rayalign, Workplace

LONG = {"prompt": "what " * 60, "response": "red ."}
EMPTY = {"prompt": "what is red ?", "response": " "}


def test_what_is_left_out_is_told_once(
    rayalign: Rayalign, workplace: Workplace, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS[:2], EMPTY, LONG, *ROWS[:3], LONG]
    (workplace.folder / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    workplace.values["data"] |= {"overlong": "drop", "heldout_frac": 0}
    workplace.values["data"]["demonstrations"]["streaming"] = True
    workplace.values["stages"][0] |= {"max_steps": 2}
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 0, outcome.err
    told = [line for line in outcome.err.splitlines() if line.startswith("demos.jsonl: ")]
    assert len(told) == 1, outcome.err
    assert "6 rows used, 3 left out (1 x empty response, first at" in told[0] and "demos.jsonl:3; 2 x too long" in told[0]
    assert told[0].endswith("; a row counts each time that it is read")
    assert "left out" not in caplog.text  # which goes to the terminal, too


def test_nothing_is_told_of_rows_that_are_all_used(rayalign: Rayalign, workplace: Workplace) -> None:
    workplace.values["data"]["heldout_frac"] = 0
    workplace.values["data"]["demonstrations"]["streaming"] = True
    workplace.values["stages"][0] |= {"max_steps": 2}
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 0, outcome.err
    assert "rows used" not in outcome.err
