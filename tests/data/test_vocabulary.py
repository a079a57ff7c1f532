"""Whether a model and a tokenizer mean the same by a number: by tokenizer.json as by the loaded tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rayalign.data.template import Template
from rayalign.data.vocabulary import Vocabulary, read_vocabulary, scratch_problem, vocabulary_problem
from rayalign.planted.tokenizer import save_tokenizer

RUN = Vocabulary("run", {"a": 0, "b": 1, "c": 2}, {"<eos>": 3, "<image>": 7}, used="{{ messages }}<eos>")


def own(*tokens: str, **added: int) -> Vocabulary:
    """Another tokenizer's."""
    return Vocabulary("own", {token: number for number, token in enumerate(tokens)}, added)


@pytest.mark.parametrize(
    ("num_tokens", "theirs", "words"),
    [
        (4, None, None),  # <image> is used by nothing
        (None, None, None),
        (8, own("a", "b", "c", "d"), None),
        (8, own("a", "b", c=9), None),  # a special token there
        (8, own(), None),  # a folder of which nothing could be read
        (3, None, "m: knows 3 tokens, and the run's tokenizer (run) has 4; give a model of that tokenizer"),
        (3, own("a", "b", "c"), "knows 3 tokens"),
        (8, own("a", "c", "b"), "m: made for another tokenizer than the run's (run): 'b' is token 2 there and 1 here"),
        (8, own("a", "b"), "'c' is no token there and 2 here; give a model of the run's tokenizer"),
    ],
)
def test_what_agrees(num_tokens: int | None, theirs: Vocabulary | None, words: str | None) -> None:
    problem = vocabulary_problem("m", num_tokens, theirs, RUN)
    assert (words is None and problem is None) or (words and problem and words in problem), problem


def test_a_new_model_has_room_for_every_token() -> None:
    assert scratch_problem(4, RUN) is None and scratch_problem("many", RUN) is None
    assert "a new model of 3 tokens" in str(scratch_problem(3, RUN))


def test_the_file_tells_what_the_tokenizer_tells(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    loaded, read = Template(tokenizer).vocabulary("it"), read_vocabulary(tmp_path, used="<ans><bos><eos>")
    assert read is not None
    assert loaded.ordinary == read.ordinary and loaded.added == read.added
    assert loaded.num_needed == read.num_needed == len(tokenizer)


def test_scored_tokens_are_numbered_by_their_place(tmp_path: Path) -> None:
    """As Unigram keeps them."""
    told = {"model": {"vocab": [["<s>", 0.0], ["a", -1.5]]}, "added_tokens": [{"content": "<s>", "id": 0}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(told))
    read = read_vocabulary(tmp_path)
    assert read is not None and read.ordinary == {"a": 1} and read.added == {"<s>": 0}


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"model": {"vocab": 3}}', '{"model": {"vocab": [1]}}'])
def test_a_file_that_tells_nothing(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "tokenizer.json").write_text(text)
    assert read_vocabulary(tmp_path) is None
