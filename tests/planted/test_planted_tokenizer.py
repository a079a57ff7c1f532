"""The tokenizer loses nothing, joins cleanly at `<ans>`, and survives being saved."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from rayalign.planted import words as w
from rayalign.planted.demonstrators import BASE_HALF, BASE_LOW, EXPERT_80
from rayalign.planted.tokenizer import (
    ANS,
    BOS,
    EOS,
    MAX_POSITIONS,
    SPECIAL_TOKENS,
    build_tokenizer,
    save_tokenizer,
)
from rayalign.planted.world import PlantedWorld

ROWS = [
    row for who in (BASE_LOW, BASE_HALF, EXPERT_80) for row in PlantedWorld(seed=9).demonstrations(who, 300)
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def rendered_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    conversation = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)


def rendered_pair(tokenizer: PreTrainedTokenizerFast, row: dict[str, str]) -> str:
    turns = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
    return tokenizer.apply_chat_template(turns, tokenize=False)


def test_vocabulary_is_closed_and_special_tokens_are_apart(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == len(w.vocabulary()) + len(SPECIAL_TOKENS) == 182
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [0, 1, 2, 3, 4]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert not set(SPECIAL_TOKENS) & set(w.vocabulary())


def test_round_trip_is_exact(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in ROWS:
        for text in row.values():
            ids = tokenizer(text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert len(ids) == len(text.split())
            assert tokenizer.decode(ids) == text


def test_the_template_renders_the_documented_text(tokenizer: PreTrainedTokenizerFast) -> None:
    row = ROWS[0]
    prompt = rendered_prompt(tokenizer, row["prompt"])
    assert prompt == f"{BOS}{row['prompt']} {ANS}"
    assert rendered_pair(tokenizer, row) == f"{prompt}{row['response']}{EOS}"
    with pytest.raises(Exception, match="roles user and assistant"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_tokens_of_prompt_and_response_join_to_the_tokens_of_the_whole(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    for row in ROWS:
        prompt_ids = tokenizer(rendered_prompt(tokenizer, row["prompt"]))["input_ids"]
        response_ids = tokenizer(row["response"])["input_ids"]
        whole = tokenizer(rendered_pair(tokenizer, row))["input_ids"]
        assert prompt_ids + response_ids + [tokenizer.eos_token_id] == whole
        assert len(prompt_ids) == 8
        assert len(response_ids) + 1 <= w.MAX_RESPONSE_TOKENS


def test_decoding_a_generation_gives_the_response(tokenizer: PreTrainedTokenizerFast) -> None:
    for row in ROWS[:50]:
        generated = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id, tokenizer.pad_token_id]
        assert tokenizer.decode(generated, skip_special_tokens=True) == row["response"]


def test_saved_and_loaded_it_is_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path))
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    for token in ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id"):
        assert getattr(loaded, token) == getattr(tokenizer, token)
    for row in ROWS[:100]:
        ids = tokenizer(rendered_pair(tokenizer, row))["input_ids"]
        assert loaded(rendered_pair(loaded, row))["input_ids"] == ids
        assert loaded.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids, skip_special_tokens=True)


def test_prompt_and_response_fit_the_models_positions() -> None:
    assert MAX_POSITIONS >= 8 + w.MAX_RESPONSE_TOKENS
