"""Every row shape people have, the odd rows, and what is refused with which words."""

from __future__ import annotations

import logging

import pytest

from rayalign.data.files import Place
from rayalign.data.shapes import demonstrations, preferences, prompts
from rayalign.data.tally import Tally
from rayalign.errors import DataError
from rayalign.types import Demonstration, Message, Preference

HH = "\n\nHuman: hi\n\nAssistant: Hello.\n\nHuman: {}\n\nAssistant: {}"


def placed(*rows):
    return [(Place("a.jsonl", number, "line"), row) for number, row in enumerate(rows, start=1)]


def convert(make, *rows, tally=None):
    return [value for _, value in make(placed(*rows), tally=tally)]


def fails(make, row) -> str:
    with pytest.raises(DataError) as caught:
        convert(make, row)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def user(text):
    return Message("user", text)


def assistant(text):
    return Message("assistant", text)


def said(*texts, roles=("user", "assistant")):
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def sharegpt(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


SINGLE = Demonstration((user("q"),), "a")
MULTI = Demonstration((user("q"), assistant("a"), user("q2")), "a2")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "response": "a"}, SINGLE),
        ({"prompt": "q", "completion": "a"}, SINGLE),
        ({"prompt": said("q"), "completion": [{"role": "assistant", "content": "a"}]}, SINGLE),
        ({"prompt": said("q", "a", "q2"), "response": "a2"}, MULTI),
        ({"messages": said("q", "a")}, SINGLE),
        ({"messages": said("q", "a", "q2", "a2")}, MULTI),
        ({"messages": said("q", "a", "q2", "a2", "never answered")}, MULTI),
        ({"messages": sharegpt("q", "a", "q2", "a2")}, MULTI),
        ({"conversations": sharegpt("q", "a")}, SINGLE),
        ({"conversations": said("q", "a")}, SINGLE),
        ({"prompt": "q", "messages": said("q", "a", "q2", "a2")}, MULTI),
        (
            {"messages": [{"role": "system", "content": "s"}, *said("q", "a")]},
            Demonstration((Message("system", "s"), user("q")), "a"),
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, *said("", "a")[1:]]},
            SINGLE,
        ),
        ({"instruction": "q", "response": "a"}, SINGLE),
        ({"instruction": "q", "context": "", "response": "a", "category": "x"}, SINGLE),
        ({"instruction": "q", "input": None, "output": "a"}, SINGLE),
        ({"instruction": "q", "input": float("nan"), "output": "a"}, SINGLE),
        ({"instruction": "q", "context": "c", "response": "a"}, Demonstration((user("q\n\nc"),), "a")),
        ({"instruction": "q", "input": "c", "output": "a"}, Demonstration((user("q\n\nc"),), "a")),
        ({"question": "q", "answer": "a"}, SINGLE),
        ({"question": "q", "context": "c", "answer": "a"}, Demonstration((user("q\n\nc"),), "a")),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, SINGLE),
        ({"instruction": "q", "input": "", "output": "x", "chosen": "a", "rejected": "b"}, SINGLE),
        ({"prompt": "q", "response": "a", "chosen": "x", "rejected": "b"}, SINGLE),
        ({"chosen": said("q", "a"), "rejected": said("q", "b")}, SINGLE),
        (
            {"chosen": HH.format("q", "a"), "rejected": HH.format("q", "b")},
            Demonstration((user("hi"), assistant("Hello."), user("q")), "a"),
        ),
        ({"prompt": "\n\nHuman: q\n\nAssistant:", "response": "a"}, SINGLE),
    ],
)
def test_demonstration_shapes(row, expected):
    assert convert(demonstrations, row) == [expected]


PAIR = Preference((user("q"),), "a", "b")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, PAIR),
        ({"question": "q", "chosen": "a", "rejected": "b"}, PAIR),
        (
            {"instruction": "q", "input": "c", "chosen": "a", "rejected": "b"},
            Preference((user("q\n\nc"),), "a", "b"),
        ),
        ({"prompt": "q", "chosen": said("q", "a"), "rejected": said("q", "b")}, PAIR),
        (
            {
                "prompt": said("q"),
                "chosen": said("a", roles=("assistant",)),
                "rejected": said("b", roles=("assistant",)),
            },
            PAIR,
        ),
        ({"chosen": said("q", "a"), "rejected": said("q", "b")}, PAIR),
        ({"chosen": sharegpt("q", "a"), "rejected": said("q", "b")}, PAIR),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant:  b "}, PAIR),
        ({"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"}, PAIR),
        ({"prompt": "q", "chosen": "a", "rejected": ""}, Preference((user("q"),), "a", "")),
        (
            {
                "prompt": "q",
                "chosen": [{"role": "system", "content": "s"}, *said("q", "a")],
                "rejected": [{"role": "system", "content": "s"}, *said("q", "b")],
            },
            Preference((Message("system", "s"), user("q")), "a", "b"),
        ),
    ],
)
def test_preference_shapes(row, expected):
    assert convert(preferences, row) == [expected]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "q"}, (user("q"),)),
        ({"prompt": said("q", "a", "q2")}, (user("q"), assistant("a"), user("q2"))),
        ({"instruction": "q", "context": "c"}, (user("q\n\nc"),)),
        ({"question": "q", "answer": "a"}, (user("q"),)),
        ({"messages": said("q", "a")}, (user("q"),)),
        ({"messages": said("q", "a", "q2")}, (user("q"), assistant("a"), user("q2"))),
        ({"conversations": sharegpt("q")}, (user("q"),)),
        ({"chosen": said("q", "a"), "rejected": said("q", "b")}, (user("q"),)),
        (
            {"chosen": HH.format("q", "a"), "rejected": HH.format("q", "b")},
            (user("hi"), assistant("Hello."), user("q")),
        ),
    ],
)
def test_prompt_shapes(row, expected):
    assert convert(prompts, row) == [expected]


def test_shapes_may_be_mixed_and_keep_their_places():
    rows = placed({"prompt": "q", "response": "a"}, {"question": "q", "answer": "a"})
    assert [(str(place), value) for place, value in demonstrations(rows)] == [
        ("a.jsonl:1", SINGLE),
        ("a.jsonl:2", SINGLE),
    ]


def test_a_demonstration_and_its_prompt_agree():
    for row in ({"messages": said("q", "a", "q2", "a2")}, {"instruction": "q", "input": "c", "output": "a"}):
        assert convert(demonstrations, row)[0].prompt == convert(prompts, row)[0]


def test_hh_turns_of_one_speaker_in_a_row_become_one():
    text = "\n\nHuman: q\n\nAssistant: one \n\nAssistant:  two\n\nHuman: q2\n\nAssistant: {}"
    (pair,) = convert(preferences, {"chosen": text.format("a"), "rejected": text.format("b")})
    assert pair == Preference((user("q"), assistant("one\n\ntwo"), user("q2")), "a", "b")
    double = "\n\nHuman: q\n\nAssistant: a\n\nAssistant: more"
    (pair,) = convert(preferences, {"chosen": double, "rejected": "\n\nHuman: q\n\nAssistant: b"})
    assert pair == Preference((user("q"),), "a\n\nmore", "b")


def test_rows_of_no_use_are_counted_or_logged(caplog):
    """Logged where the caller brings no tally to tell them from."""
    tally = Tally()
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"chosen": HH.format("q", "a"), "rejected": HH.format("other", "b")},
        {"chosen": HH.format("q", "a"), "rejected": "\n\nHuman: q"},
        {"prompt": "q", "chosen": "b", "rejected": "b"},
        {"prompt": " ", "chosen": "a", "rejected": "b"},
    ]
    with caplog.at_level(logging.WARNING):
        assert len(convert(preferences, *rows, tally=tally)) == 1
    assert (tally.num_used, tally.left_out.total()) == (1, 5)
    assert tally.left_out == {
        "chosen and rejected are equal": 2,
        "the sides differ before their last turn": 1,
        "a side does not end with an answer": 1,
        "empty prompt": 1,
    }
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        convert(preferences, *rows)
    assert "2 x chosen and rejected are equal, first at a.jsonl:2" in caplog.text


def test_demonstrations_of_no_use_are_counted():
    tally = Tally()
    rows = [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "response": " \n"},
        {"messages": said("q")},
        {"messages": said("a", roles=("assistant",))},
        {"prompt": "q", "chosen": "", "rejected": "b"},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
    ]
    assert len(convert(demonstrations, *rows, tally=tally)) == 2
    assert tally.left_out == {"empty response": 2, "no assistant turn": 1, "empty prompt": 1}


def test_nothing_left_is_an_error():
    message = fails(preferences, {"prompt": "q", "chosen": "a", "rejected": "a"})
    assert message.startswith("a.jsonl: no row can be used (0 rows used, 1 left out (1 x chosen and rejected")


def test_clean_data_logs_nothing(caplog):
    convert(demonstrations, {"prompt": "q", "response": "a"})
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("make", "row", "expected"),
    [
        (
            demonstrations,
            {"text": "x", "n": 1},
            "no demonstration in a row with the columns text, n; accepted: {prompt, r",
        ),
        (demonstrations, {}, "no demonstration in a row with the columns (none)"),
        (demonstrations, {"prompt": "q"}, "no demonstration in a row with the columns prompt"),
        (
            demonstrations,
            {"prompt": "q", "response": None},
            "no demonstration in a row with the columns prompt;",
        ),
        (demonstrations, {"prompt": "q", "response": 3}, "'response' holds int, expected text"),
        (demonstrations, {"prompt": {"a": 1}, "response": "a"}, "'prompt' holds dict, expected text"),
        (demonstrations, {"prompt": "\ud800", "response": "a"}, "'prompt' holds half of a surrogate pair"),
        (demonstrations, {"messages": []}, "'messages' must be a list of messages with at least one"),
        (
            demonstrations,
            {"messages": "text"},
            "'messages' must be a list of messages with at least one, found str",
        ),
        (
            demonstrations,
            {"messages": ["text"]},
            "messages[0] must be {role, content} or {from, value}, found str",
        ),
        (
            demonstrations,
            {"messages": [{"role": "user"}]},
            "messages[0] must be {role, content} or {from, value}, f",
        ),
        (
            demonstrations,
            {"messages": [*said("q"), {"role": "tool", "content": ""}]},
            "messages[1] has the role 'tool'",
        ),
        (demonstrations, {"messages": [{"role": "user", "content": None}]}, "'messages[0]' holds NoneType"),
        (
            demonstrations,
            {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
            "'messages[0]' holds list, expected text",
        ),
        (
            demonstrations,
            {"prompt": "q", "response": said("q", "a")},
            "must be text or one assistant message, found",
        ),
        (
            preferences,
            {"prompt": "q", "response": "a"},
            "no preference in a row with the columns prompt, response; a",
        ),
        (
            preferences,
            {"chosen": "a", "rejected": "b"},
            "'chosen' is a plain text, but the row has no prompt; accept",
        ),
        (
            preferences,
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "b"},
            "'rejected' is a plain text",
        ),
        (
            preferences,
            {"prompt": "other", "chosen": said("q", "a"), "rejected": said("q", "b")},
            "the turns before the answers are not the prompt",
        ),
        (prompts, {"text": "q"}, "no prompt in a row with the columns text; accepted: {prompt}"),
    ],
)
def test_what_is_refused_names_the_place(make, row, expected):
    message = fails(make, row)
    assert message.startswith("a.jsonl:1: ")
    assert expected in message


def test_refusals_say_what_to_do():
    assert "name other columns in the source's columns setting" in fails(demonstrations, {"text": "x"})


def test_rows_are_converted_as_they_are_taken():
    def rows():
        yield from placed({"prompt": "q", "response": "a"})
        raise AssertionError("read too far")

    assert next(demonstrations(rows()))[1] == SINGLE
