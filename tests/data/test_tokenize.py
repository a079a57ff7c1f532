"""Rows as tokens: contents, prompt ids, and what becomes of rows that are too long."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayalign.data.files import Place
from rayalign.data.shapes import demonstrations
from rayalign.data.tally import Tally
from rayalign.data.template import Template
from rayalign.data.tokenize import (
    prompt_ids,
    prompts_of,
    tokenize_demonstrations,
    tokenize_preferences,
    tokenize_prompts,
)
from rayalign.errors import ConfigError, DataError
from rayalign.types import Demonstration, Message, Preference

from .conftest import CHATML, LLAMA, make_tokenizer, prompt_tokens, response_tokens, sequence_tokens

TEMPLATE = Template(make_tokenizer(chat_template=CHATML))
WITH_BOS = Template(make_tokenizer(chat_template=LLAMA, adds_bos=True))


def asked(text: str):
    return (Message("user", text),)


def demo(prompt: str, response: str) -> Demonstration:
    return Demonstration(asked(prompt), response)


PLACES = [Place("d.jsonl", number, "line") for number in range(1, 100)]
NUM_FRAME = len(prompt_tokens(TEMPLATE, asked("")))  # what ChatML puts around a prompt


def test_demonstrations():
    rows = [demo("one", "a"), demo("two", "bb"), demo("one", "ccc")]
    found = tokenize_demonstrations(rows, TEMPLATE, max_length=64)
    for row, tokens, response in zip(rows, found.tokens, found.responses(), strict=True):
        assert tokens.tolist() == sequence_tokens(TEMPLATE, row.prompt, row.response)[0]
        assert TEMPLATE.decode_response(response) == row.response
        assert response[-1] == TEMPLATE.end_token_id
    assert found.prompt_ids.tolist() == [0, 1, 0]
    assert found.ended.tolist() == [True] * 3
    assert found.tokens.values.dtype == found.prompt_lengths.dtype == np.int64


def test_prompts_are_those_of_the_demonstrations():
    rows = [demo("one", "a"), demo("two", "bb"), demo("one", "ccc")]
    sequences = tokenize_demonstrations(rows, TEMPLATE, max_length=64, room=8)
    prompts = tokenize_prompts([row.prompt for row in rows], TEMPLATE, max_length=64, room=8)
    assert [p.tolist() for p in prompts.tokens] == [p.tolist() for p in sequences.prompts()]
    assert prompts.prompt_ids.tolist() == [0, 1, 2]
    unique = prompts_of(sequences)
    assert unique.prompt_ids.tolist() == [0, 1]
    assert [p.tolist() for p in unique.tokens] == [p.tolist() for p in prompts.tokens][:2]


def test_preferences_share_their_prompts():
    rows = [Preference(asked("one"), "a", "bbb"), Preference(asked("one"), "cc", "")]
    chosen, rejected = tokenize_preferences(rows, TEMPLATE, max_length=64)
    assert [TEMPLATE.decode_response(r) for r in chosen.responses()] == ["a", "cc"]
    assert [TEMPLATE.decode_response(r) for r in rejected.responses()] == ["bbb", ""]
    assert chosen.prompt_ids.tolist() == rejected.prompt_ids.tolist() == [0, 0]
    assert [p.tolist() for p in chosen.prompts()] == [p.tolist() for p in rejected.prompts()]


def test_many_rows_pass_in_order():
    rows = [demo(f"{i}", f"{i * 7}") for i in range(2500)]  # more than one chunk
    found = tokenize_demonstrations(rows, TEMPLATE, max_length=64)
    assert [TEMPLATE.decode_response(r) for r in found.responses()] == [f"{i * 7}" for i in range(2500)]
    assert found.prompt_ids.tolist() == list(range(2500))


def test_no_rows():
    found = tokenize_demonstrations([], TEMPLATE, max_length=8)
    assert len(found) == 0
    assert found.take(np.array([], dtype=np.int64)).num_response_tokens == 0


def test_too_long_is_an_error_that_says_where_and_what_to_change():
    rows = [demo("one", "a"), demo("x" * 30, "yyyy")]
    with pytest.raises(DataError) as caught:
        tokenize_demonstrations(rows, TEMPLATE, max_length=32, places=PLACES)
    length = NUM_FRAME + 30
    assert str(caught.value) == (
        f"d.jsonl:2: a prompt of {length} tokens and a response of 5 make {length + 5}, over max_length 32; "
        "raise model.max_length, shorten the row, or set data.overlong to drop or truncate"
    )
    with pytest.raises(
        DataError, match=f"^row 2: a prompt of {length} tokens leaves no room for 8 more in max_length"
    ):
        tokenize_prompts([asked(""), asked("x" * 30)], TEMPLATE, max_length=32, room=8)
    with pytest.raises(DataError, match="^row 1: a prompt of .* leaves no room for 8 more"):
        tokenize_demonstrations(rows[1:], TEMPLATE, max_length=32, room=8)


def test_exactly_long_enough():
    rows = [demo("x" * 10, "y" * 10)]
    tokenize_demonstrations(rows, TEMPLATE, max_length=NUM_FRAME + 21)
    with pytest.raises(DataError):
        tokenize_demonstrations(rows, TEMPLATE, max_length=NUM_FRAME + 20)
    tokenize_prompts([asked("x" * 10)], TEMPLATE, max_length=NUM_FRAME + 18, room=8)
    with pytest.raises(DataError):
        tokenize_prompts([asked("x" * 10)], TEMPLATE, max_length=NUM_FRAME + 17, room=8)


def test_drop_counts_or_logs(caplog):
    """Logs where the caller brings no tally to tell from."""
    rows = [demo("one", "a"), demo("x" * 30, "y"), demo("two", "b"), demo("one", "z" * 30)]
    tally = Tally()
    with caplog.at_level(logging.WARNING):
        found = tokenize_demonstrations(
            rows, TEMPLATE, max_length=32, overlong="drop", places=PLACES, tally=tally
        )
    assert found.prompt_ids.tolist() == [0, 2], "ids are row numbers in the data, whatever was left out"
    assert (tally.num_used, tally.left_out.total()) == (2, 2)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        tokenize_demonstrations(rows, TEMPLATE, max_length=32, overlong="drop", places=PLACES)
    assert "2 x too long, first at d.jsonl:2: a prompt of" in caplog.text


def test_one_tally_goes_from_step_to_step():
    texts = ["a", "", "z" * 30]
    placed = [(place, {"prompt": "q", "response": text}) for place, text in zip(PLACES, texts, strict=False)]
    tally = Tally()
    places, rows = zip(*demonstrations(placed, tally=tally), strict=True)
    tokenize_demonstrations(rows, TEMPLATE, max_length=32, overlong="drop", places=places, tally=tally)
    assert (tally.num_used, tally.left_out.total()) == (1, 2)
    with pytest.raises(DataError, match="all 1 rows are too long"):
        tokenize_demonstrations(rows[1:], TEMPLATE, max_length=32, overlong="drop", tally=tally)


def test_a_pair_is_dropped_whole():
    rows = [Preference(asked("one"), "a", "z" * 40), Preference(asked("two"), "b", "c")]
    for side in tokenize_preferences(rows, TEMPLATE, max_length=32, overlong="drop"):
        assert side.prompt_ids.tolist() == [1]


def test_nothing_left_is_an_error():
    with pytest.raises(
        DataError, match="all 1 rows are too long for max_length 8; raise model.max_length, or set"
    ):
        tokenize_demonstrations([demo("one", "a" * 20)], TEMPLATE, max_length=8, overlong="drop")


def test_truncation_cuts_the_prompt_on_the_left_and_keeps_the_response():
    row = demo("x" * 30 + "end", "yyyy")
    tally = Tally()
    found = tokenize_demonstrations([row], TEMPLATE, max_length=32, overlong="truncate", tally=tally)
    whole, _ = sequence_tokens(TEMPLATE, row.prompt, row.response)
    assert next(iter(found.tokens)).tolist() == whole[-32:]
    assert found.ended.tolist() == [True]
    assert tally.cut == {"prompt cut on the left": 1}


def test_a_response_that_does_not_fit_has_no_end():
    tally = Tally()
    found = tokenize_demonstrations(
        [demo("q", "y" * 60)], TEMPLATE, max_length=32, overlong="truncate", tally=tally
    )
    assert found.tokens.lengths.tolist() == [32]
    assert found.prompt_lengths.tolist() == [1], "a response needs something to follow"
    assert TEMPLATE.end_token_id not in next(found.responses())
    assert found.ended.tolist() == [False]
    assert tally.cut["response cut on the right, without an end"] == 1


def test_with_room_training_and_generation_cut_the_same_prompt():
    rows = [demo("x" * 30, "y"), demo("x" * 30, "y" * 40), demo("short", "y")]
    found = tokenize_demonstrations(rows, TEMPLATE, max_length=32, room=12, overlong="truncate")
    prompts = tokenize_prompts(
        [r.prompt for r in rows], TEMPLATE, max_length=32, room=12, overlong="truncate"
    )
    assert [p.tolist() for p in found.prompts()] == [p.tolist() for p in prompts.tokens]
    assert prompts.tokens.lengths.max() == 20
    assert found.ended.tolist() == [True, False, True]


def test_a_cut_pair_shares_its_cut_prompt():
    rows = [Preference(asked("x" * 30), "a", "b" * 10)]
    chosen, rejected = tokenize_preferences(rows, TEMPLATE, max_length=32, overlong="truncate")
    assert [p.tolist() for p in chosen.prompts()] == [p.tolist() for p in rejected.prompts()]
    assert rejected.tokens.lengths.tolist() == [32]
    assert chosen.ended.all()
    assert rejected.ended.all()


def test_a_cut_prompt_keeps_its_bos():
    (cut,) = tokenize_prompts([asked("x" * 60)], WITH_BOS, max_length=32, room=8, overlong="truncate").tokens
    whole = prompt_tokens(WITH_BOS, asked("x" * 60))
    assert cut.tolist() == [0, *whole[-23:]]


def test_room_for_a_prompt():
    with pytest.raises(
        ConfigError, match=r"max_new_tokens \(32\) leaves no room for a prompt in model.max_length"
    ):
        tokenize_prompts([asked("x")], TEMPLATE, max_length=32, room=32)


def test_a_prompt_without_tokens(write):
    template = Template(make_tokenizer(), str(write("empty.jinja", "{{ messages[0]['content'] }}")))
    with pytest.raises(DataError, match="d.jsonl:1: the prompt has no tokens"):
        tokenize_demonstrations([demo("", "a")], template, max_length=8, places=PLACES)


def test_a_refused_conversation_names_its_place():
    rows = [demo("q", "a"), Demonstration((Message("assistant", "x"),), "a")]
    with pytest.raises(
        DataError, match="^d.jsonl:2: the chat template does not take a conversation with the roles"
    ):
        tokenize_demonstrations(rows, WITH_BOS, max_length=64, places=PLACES)


def test_prompt_ids():
    assert prompt_ids([asked("a"), asked("b"), asked("a")]).tolist() == [0, 1, 0]
    assert prompt_ids([]).dtype == np.int64


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.text("xyz ", max_size=30), st.text("ab ", max_size=40)), max_size=5),
    st.integers(2, 48),
    st.one_of(st.none(), st.integers(1, 47)),
)
def test_truncated_rows_are_ends_of_prompts_and_beginnings_of_responses(pairs, max_length, room):
    room = room if room is None or room < max_length else None
    rows = [demo(prompt, response) for prompt, response in pairs]
    found = tokenize_demonstrations(rows, TEMPLATE, max_length=max_length, overlong="truncate", room=room)
    assert len(found) == len(rows)
    for row, prompt, response, ended in zip(
        rows, found.prompts(), found.responses(), found.ended, strict=True
    ):
        assert 1 <= len(prompt)
        assert len(prompt) + len(response) <= max_length
        whole_prompt, whole_response = (
            prompt_tokens(TEMPLATE, row.prompt),
            response_tokens(TEMPLATE, row.response),
        )
        assert whole_prompt[-len(prompt) :] == prompt.tolist()
        assert whole_response[: len(response)] == response.tolist()
        assert ended == (len(response) == len(whole_response))
