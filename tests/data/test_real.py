"""The real files, where they are at hand: HH-RLHF with its odd rows, dolly, UltraFeedback."""

from __future__ import annotations

import re

import numpy as np
import pytest

from rayalign.config.data import DataSource
from rayalign.data.shapes import demonstrations, preferences
from rayalign.data.sources import read_rows
from rayalign.data.splits import split_heldout
from rayalign.data.tally import Tally
from rayalign.data.template import Template
from rayalign.data.tokenize import tokenize_demonstrations, tokenize_preferences
from rayalign.types import Message

from .conftest import CHATML, LLAMA, REAL_DATA, make_tokenizer, prompt_tokens, real

pytestmark = pytest.mark.data

HH = "preferences/hh_harmless_base_test.jsonl.gz"
DOLLY = "demonstrations/dolly15k.jsonl.gz"


def read(name, make, tally=None, **settings):
    return list(
        make(
            read_rows(DataSource(path=str(real(name)), **settings), resolve=REAL_DATA.__truediv__),
            tally=tally,
        )
    )


def test_hh_pairs():
    tally = Tally()
    pairs = read(HH, preferences, tally)
    assert len(pairs) == tally.num_used == 2312
    assert tally.left_out.total() == 0
    for place, pair in pairs:
        roles = [message.role for message in pair.prompt]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], str(place)
        assert pair.chosen != pair.rejected


def test_hh_odd_rows():
    pairs = {place.number: pair for place, pair in read(HH, preferences)}
    unsplit = [n for n, p in pairs.items() if re.search("\n\n(Human|Assistant):", f"{p.chosen} {p.rejected}")]
    assert unsplit == [2037], "an answer that itself begins with Human: was joined to the one before it"
    silent = [number for number, pair in pairs.items() if not pair.chosen]
    assert silent == [87, 517, 926, 1104]
    doubled = pairs[1953]  # two assistant turns in a row on the chosen side only
    assert doubled.prompt[-1] == Message("user", "Yes, please find me a serial.")
    assert doubled.chosen.startswith("Alrighty, I’ll do my best, here’s the key:\n\n")


def test_hh_chosen_as_demonstrations():
    tally = Tally()
    found = read(HH, demonstrations, tally)
    pairs = {place: pair for place, pair in read(HH, preferences)}
    assert len(found) == 2308
    assert tally.left_out == {"empty response": 4}
    assert all(
        (demo.prompt, demo.response) == (pairs[place].prompt, pairs[place].chosen) for place, demo in found
    )


def test_hh_tokens():
    places, pairs = zip(*read(HH, preferences, limit=200), strict=True)
    template = Template(make_tokenizer(chat_template=LLAMA, adds_bos=True))
    sides = tokenize_preferences(pairs, template, max_length=512, overlong="truncate", places=places)
    assert all(len(side) == 200 and side.tokens.lengths.max() <= 512 for side in sides)
    assert [p.tolist() for p in sides[0].prompts()] == [p.tolist() for p in sides[1].prompts()]


def test_dolly():
    found = read(DOLLY, demonstrations)
    assert len(found) == 15011
    with_context = sum("\n\n" in demo.prompt[0].content for _, demo in found)
    assert with_context >= 4467
    train, heldout = split_heldout(np.arange(len(found)), frac=0.1, seed=0)
    assert (len(train), len(heldout)) == (13510, 1501)


def test_dolly_tokens_say_what_the_rows_said():
    rows = [demo for _, demo in read(DOLLY, demonstrations, limit=300)]
    template = Template(make_tokenizer(chat_template=CHATML))
    found = tokenize_demonstrations(rows, template, max_length=100_000)
    assert [template.decode_response(r) for r in found.responses()] == [row.response for row in rows]
    for row, prompt in zip(rows, found.prompts(), strict=True):
        assert prompt.tolist() == prompt_tokens(template, row.prompt)


def test_ultrafeedback_has_equal_pairs():
    tally = Tally()
    assert len(read("preferences/ultrafeedback_sample_1200.jsonl.gz", preferences, tally)) == 1195
    assert tally.left_out == {"chosen and rejected are equal": 5}


def test_a_folder_of_several_shapes():
    real(DOLLY)
    source = DataSource(path="demonstrations")
    found = list(demonstrations(read_rows(source, resolve=REAL_DATA.__truediv__)))
    assert len(found) == 15011 + 175 + 11765


def test_questions_with_answers_under_other_names():
    found = read(
        "prompts/truthfulqa_790.jsonl.gz",
        demonstrations,
        columns={"prompt": "Question", "response": "Best Answer"},
    )
    assert len(found) == 790
