"""Strategies for rows that mean nothing."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from rayalign.data.shapes import COLUMNS
from tests.hostile.data import KINDS, good, read, write_rows
from tests.hostile.judge import Case

TEXT = st.sampled_from(
    ["", " ", "\n", "x", "\0", "\ud800", "\udc00x", "\u202e", "\ufeff", "<|im_end|>", "</s>", "\x1b[2J", "a" * 2000,
    "\U0001f9d1\u200d",
     "\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", "\n\nAssistant: b", "{{ 1/0 }}", "{% raise %}", "\n\nHuman: a"]
) | st.text(max_size=6)  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | TEXT
ROLES = st.sampled_from(["user", "assistant", "system", "User", "tool", "function", "", "gpt", "human", "wizard",
None, 3])
MESSAGE = (
    st.fixed_dictionaries({"role": ROLES, "content": SCALARS})
    | st.fixed_dictionaries({"from": ROLES, "value": SCALARS})
    | st.dictionaries(st.sampled_from(["role", "content", "from", "value", "name"]), SCALARS, max_size=3)
    | SCALARS
)
VALUE = st.recursive(
    SCALARS | st.lists(MESSAGE, max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
COLUMN = st.sampled_from([*COLUMNS, "prompt_tokens", "response_tokens", "ended", "text", "", "\ud800"])

NEST: Any = "x"
for _ in range(200):
    NEST = [NEST]

# Rows of no use, and the field that a message must name.
NONSENSE: dict[str, list[tuple[Any, str]]] = {
    "demonstrations": [
        ({"prompt": "a", "response": 3}, "response"),
        ({"prompt": 3, "response": "a"}, "prompt"),
        ({"prompt": "a", "response": True}, "response"),
        ({"prompt": "a", "response": ["b"]}, "response"),
        ({"prompt": "a", "response": {"b": "c"}}, "response"),
        ({"prompt": "a", "response": NEST}, "response"),
        ({"prompt": [], "response": "a"}, "prompt"),
        ({"prompt": "\ud800", "response": "a"}, "prompt"),
        ({"prompt": "a", "response": "b\udfff"}, "response"),
        ({"messages": []}, "messages"),
        ({"messages": "a"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant"}]}, "messages[1]"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0]"),
        ({"messages": [{"role": None, "content": "a"}]}, "messages[0]"),
        ({"messages": [3]}, "messages[0]"),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0]"),
        ({"instruction": ["a"], "output": "b"}, "instruction"),
        ({"question": "a", "answer": 3.5}, "answer"),
        ({"response": "a"}, "response"),
        ({"prompt": "a"}, "prompt"),
        ({"text": "a"}, "text"),
        ({}, "(none)"),
        ([], "a list"),
        (3, "a number"),
        ("a", "a text"),
        (None, "null"),
    ],
    "prompts": [
        ({"prompt": 3}, "prompt"),
        ({"prompt": {"a": "b"}}, "prompt"),
        ({"prompt": [{"role": "user"}]}, "prompt[0]"),
        ({"messages": [[]]}, "messages[0]"),
        ({"text": "a"}, "text"),
        ({"prompt": "\udc00"}, "prompt"),
        ([{"prompt": "a"}], "a list"),
    ],
    "preferences": [
        ({"prompt": "a", "chosen": 3, "rejected": "b"}, "chosen"),
        ({"prompt": "a", "chosen": "b", "rejected": ["c"]}, "rejected"),
        ({"prompt": "a", "chosen": "b"}, "chosen"),
        ({"chosen": "a", "rejected": "b"}, "chosen"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt"),
        ({"prompt": "a", "chosen": [], "rejected": "b"}, "chosen"),
        ({"prompt": "a", "chosen": "\ud800", "rejected": "b"}, "chosen"),
        ({"prompt": "a", "response": "b"}, "response"),
    ],
    "samples": [
        ({"prompt_tokens": [3], "response_tokens": [4]}, "ended"),
        ({"prompt_tokens": [3], "response_tokens": [], "ended": True}, "response_tokens"),
        ({"prompt_tokens": [], "response_tokens": [4], "ended": True}, "prompt_tokens"),
        ({"prompt_tokens": [-3], "response_tokens": [4], "ended": True}, "prompt_tokens"),
        ({"prompt_tokens": [3], "response_tokens": [10**30], "ended": True}, "response_tokens"),
        ({"prompt_tokens": [3], "response_tokens": [99_999], "ended": True}, "response_tokens"),
        ({"prompt_tokens": [3.0], "response_tokens": [4], "ended": True}, "prompt_tokens"),
        ({"prompt_tokens": [True], "response_tokens": [4], "ended": True}, "prompt_tokens"),
        ({"prompt_tokens": "3", "response_tokens": [4], "ended": True}, "prompt_tokens"),
        ({"prompt_tokens": [3], "response_tokens": [[4]], "ended": True}, "response_tokens"),
        ({"prompt_tokens": [3], "response_tokens": [4], "ended": "no"}, "ended"),
        ({"prompt_tokens": [3], "response_tokens": [4], "ended": 2}, "ended"),
        ({"prompt_tokens": [3], "response_tokens": [4], "ended": None}, "ended"),
        ({"prompt_tokens": [3], "response_tokens": None, "ended": True}, "response_tokens"),
    ],
}


@st.composite
def with_a_row_of_nonsense(draw: st.DrawFn) -> Case:
    """One row that means nothing among good ones: file, line and field are named."""
    kind = draw(st.sampled_from(KINDS))
    bad, field = draw(st.sampled_from(NONSENSE[kind]))
    before = list(good(kind))[: draw(st.integers(0, 4))]
    suffix = draw(st.sampled_from([".jsonl", ".jsonl.gz", ".json", ".json.gz"]))
    file = write_rows([*before, bad, *good(kind)], suffix)
    number = len(before) + 1
    place = (file.name, f":{number}" if suffix.startswith(".jsonl") else f"row {number}", field)
    what = f"{bad!r:.100} after {len(before)} in {suffix}"
    return read(kind, "a row of nonsense", what, file, place=place, must="refuse")


@st.composite
def with_any_row(draw: st.DrawFn) -> Case:
    """A row of any columns and values."""
    kind = draw(st.sampled_from(KINDS))
    if draw(st.booleans()):
        row: Any = draw(st.dictionaries(COLUMN, VALUE, max_size=4))
    else:
        row = {**good(kind)[0], draw(COLUMN): draw(VALUE)}
    before = list(good(kind))[: draw(st.integers(0, 2))]
    file = write_rows([*before, row, *before], draw(st.sampled_from([".jsonl", ".json"])))
    return read(kind, "any row", repr(row), file)
