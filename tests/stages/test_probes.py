"""rounds.jsonl: what stands in a line, and that a run which went back writes each round once."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rayalign.data.template import Template
from rayalign.planted.tokenizer import build_tokenizer
from rayalign.stages.probes import Probe, _pieces, forget_probes, keep_probe
from rayalign.storage.jsonl import add_line, drop_lines, read_lines
from rayalign.storage.run_folder import ROUNDS_FILE
from rayalign.types import Ragged, Scores, Sequences


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(build_tokenizer(), None)


def sequences(template: Template, rows: list[tuple[str, str]], ids: list[int]) -> Sequences:
    """Of prompts and responses, each of which ended."""
    prompts = template.encode_prompts([prompt for prompt, _ in rows])
    responses = template.encode_responses([response for _, response in rows])
    tokens = Ragged.from_list([[*p, *r] for p, r in zip(prompts, responses, strict=True)])
    lengths = np.array([len(prompt) for prompt in prompts])
    return Sequences(tokens, lengths, np.array(ids), np.full(len(rows), True))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / ROUNDS_FILE).read_text().splitlines()]


def test_samples_stand_beside_the_demonstration_of_their_prompt(template: Template, tmp_path: Path) -> None:
    demonstrations = sequences(template, [("asks Anna", "lamp Anna"), ("asks Bruno", "lamp Bruno")], [7, 9])
    drawn = [("asks Bruno", "price Bruno"), ("asks Anna", "price Anna"), ("asks Bruno", "cost Bruno")]
    samples = sequences(template, drawn, [9, 7, 9])
    scores = Scores(np.array([2, 0, 1]), np.array([0.3, 0.1, np.nan], dtype=np.float32), 1)  # of two shards
    probe = Probe(demonstrations, samples, None, scores)

    keep_probe(tmp_path / ROUNDS_FILE, template, probe, stage="rft", rounds_done=1, step=8)

    [line] = lines(tmp_path)
    assert (line["stage"], line["rounds_done"], line["step"]) == ("rft", 1, 8)
    first, second = line["prompts"]
    texts = lambda row: [answer["response"] for answer in row["answers"]]  # noqa: E731
    assert (texts(first), texts(second)) == (["price Anna"], ["price Bruno", "cost Bruno"])
    assert first["demonstration"] == "lamp Anna" and first["reward"] is None
    assert [answer["reward"] for answer in first["answers"] + second["answers"]] == [None, 0.1, 0.3]  # NaN is no JSON


def test_rewards_of_tokens_stand_beside_their_texts(template: Template, tmp_path: Path) -> None:
    samples = sequences(template, [("asks Anna", "price Anna")], [0])
    [tokens] = list(samples.responses())
    dense = Ragged.from_list([np.arange(len(tokens)) / 4], np.float32)
    scores = Scores(np.array([0]), dense.values.sum(keepdims=True), 1, dense)

    keep_probe(tmp_path / ROUNDS_FILE, template, Probe(samples, samples, scores, scores), stage="ava", rounds_done=0, step=0)

    [answer] = lines(tmp_path)[0]["prompts"][0]["answers"]
    assert "".join(text for text, _ in answer["tokens"]) == template.decode_tokens(tokens)
    assert [reward for _, reward in answer["tokens"]] == [place / 4 for place in range(len(tokens))]


def test_a_run_that_went_back_has_each_round_once(template: Template, tmp_path: Path) -> None:
    probe = Probe(sequences(template, [("asks", "price")], [0]), sequences(template, [("asks", "price")], [0]))
    newer = Probe(sequences(template, [("asks", "cost")], [0]), sequences(template, [("asks", "cost")], [0]))
    file = tmp_path / ROUNDS_FILE
    for stage, done in (("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)):
        keep_probe(file, template, probe, stage=stage, rounds_done=done, step=4 * done)

    forget_probes(file, "b", lambda old: old["step"] > 4)  # back to the last step of round 1, which ends once more
    keep_probe(file, template, newer, stage="b", rounds_done=1, step=4)

    found = [(line["stage"], line["rounds_done"], line["prompts"][0]["demonstration"]) for line in lines(tmp_path)]
    assert found == [("a", 0, "price"), ("a", 1, "price"), ("b", 0, "price"), ("b", 1, "cost")]


def test_lines_that_are_no_json_are_kept_and_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    drop_lines(file, lambda line: True)
    assert not file.exists()
    file.write_text('{"a": 1}\n[]\n{"a": 2}\n{"a"')
    add_line(file, {"a": 3})
    drop_lines(file, lambda line: line["a"] == 1)
    assert file.read_text() == '[]\n{"a": 2}\n{"a": 3}\n'
    before = file.stat().st_mtime_ns
    drop_lines(file, lambda line: line["a"] == 9)
    assert file.stat().st_mtime_ns == before


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0c"])
def test_only_a_newline_ends_a_line(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "lines.jsonl"
    for number in range(3):
        add_line(file, {"n": number, "text": f"a{separator}b"})
    drop_lines(file, lambda line: line["n"] == 1)
    assert [(line["n"], line["text"]) for line in read_lines(file)] == [(0, f"a{separator}b"), (2, f"a{separator}b")]


def test_the_last_line_is_found_however_long_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayalign.storage.jsonl.BLOCK", 7)
    file = tmp_path / "lines.jsonl"
    for number in range(4):
        add_line(file, {"n": number, "text": "x" * 50 * number}, instead_of=lambda last: last["n"] == 1)
    with file.open("a") as torn:
        torn.write('{"n": 9, "text": "' + "y" * 40)
    add_line(file, {"n": 4}, instead_of=lambda last: last["n"] == 3)
    assert [line["n"] for line in read_lines(file)] == [0, 2, 4]


def test_of_many_rounds_some_are_kept_and_the_newest(template: Template, tmp_path: Path) -> None:
    probe = Probe(sequences(template, [("asks", "price")], [0]), sequences(template, [("asks", "price")], [0]))
    for done in range(74):
        keep_probe(tmp_path / ROUNDS_FILE, template, probe, stage="rft", rounds_done=done, step=done)
    assert [line["rounds_done"] for line in lines(tmp_path)] == [*range(51), 60, 70, 73]


def test_tokens_of_one_character_are_one_piece_with_both_rewards(tmp_path: Path) -> None:
    """Bytes as tokens: a letter with an accent takes two, a Chinese one three."""
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<eos>")
    text = "né 日a"
    tokens = np.array(tokenizer.encode(text))
    rewards = np.arange(len(tokens), dtype=np.float32)
    pieces = _pieces(Template(tokenizer, "plain"), tokens, rewards)
    assert "".join(piece for piece, _ in pieces) == text
    assert [piece for piece, _ in pieces] == ["n", "é", " ", "日", "a"]
    assert [reward for _, reward in pieces] == [0, 1 + 2, 3, 4 + 5 + 6, 7]


def byte_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: place for place, letter in enumerate([*alphabet, "<eos>"])}, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return made
