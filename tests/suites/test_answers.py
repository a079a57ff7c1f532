"""A saved policy answers by vLLM: the tokens are those of training, and an answer depends on nothing else that is asked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rayalign.errors import DataError, UserError
from rayalign.serving.places import find_policy
from rayalign.suites.answers import Answerer
from rayalign.suites.options import ModelOptions
from tests.models.tiny import load_plain
from tests.serving.test_saved import CHAT, save_reward, template
from tests.suites.policies import save_policy

OPTIONS = ModelOptions(threads=1, kv_cache_gib=0.05)
MESSAGES = [{"role": message.role, "content": message.content} for message in CHAT]


def test_answers_are_those_of_the_model(tmp_path: Path) -> None:
    """Greedy ones are the likeliest tokens by transformers itself, also after a dialogue; sampled ones go by the seed."""
    folder = save_policy(tmp_path / "run" / "irl" / "policy", "chatml")
    with Answerer(tmp_path / "run", OPTIONS) as policy:
        assert policy.folder == folder and policy.max_length == 512
        (first,), (second,) = policy.answer(["Why?", MESSAGES], temperature=0, max_new_tokens=8)
        chat = template("chatml")
        (prompt,) = chat.encode_prompts([chat.prompt_text(CHAT)])
        assert second.num_prompt_tokens == len(prompt)
        model = load_plain(str(folder))
        logits = model(input_ids=torch.tensor([[*prompt, *second.tokens]])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(second.tokens)
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(second.tokens)[:, None])[:, 0]
        assert second.logprobs == pytest.approx(expected.tolist(), abs=1e-3)
        assert first.text == chat.decode_response(first.tokens) and not first.ended and len(first.tokens) == 8
        drawn = policy.answer(["Why?", "How?"], num=3, max_new_tokens=8, seed=5)
        assert [len(answers) for answers in drawn] == [3, 3] and len({a.tokens for a in drawn[0]}) == 3
        assert policy.answer(["How?"], num=3, max_new_tokens=8, seed=5, ids=[1]) == [drawn[1]]
        assert policy.answer(["How?"], num=3, max_new_tokens=8, seed=6, ids=[1]) != [drawn[1]]
        greedy = policy.answer(["Why?"], num=2, temperature=0, max_new_tokens=8)
        assert greedy == [[first, first]] and policy.answer([]) == []
        (cut,) = policy.answer(["why " * 600], max_new_tokens=8)
        assert cut[0].num_prompt_tokens == 504 and policy.tally.cut.total() == 1 and policy.tally.num_used == 8
        with pytest.raises(UserError, match="give 0, or 0.01 to 100"):
            policy.answer(["Why?"], max_new_tokens=8, temperature=0.001)
        with pytest.raises(UserError, match="leave no room for a prompt"):
            policy.answer(["Why?"], max_new_tokens=512)
        with pytest.raises(UserError, match="no conversation"):
            policy.answer([[{"role": "user"}]], max_new_tokens=8)  # type: ignore[list-item]
    save_policy(tmp_path / "other", "planted", seed=1)
    with Answerer(tmp_path / "other", OPTIONS) as other:  # a second engine in the same process
        assert other.answer(["Nora asks teapot"], max_new_tokens=4)[0][0].tokens
        with pytest.raises(DataError, match="the chat template does not take"):
            other.answer([[{"role": "system", "content": "x"}] * 2], max_new_tokens=4)


def test_which_policy_is_meant(tmp_path: Path) -> None:
    for name in ("sft", "irl"):
        save_policy(tmp_path / "run" / name / "policy")
    save_reward(tmp_path / "run" / "irl" / "reward", "planted")
    (tmp_path / "empty").mkdir()
    assert find_policy(tmp_path / "run" / "sft" / "policy") == tmp_path / "run" / "sft" / "policy"
    for place, words in {
        tmp_path / "run": "2 policies are in this run, of no finished stage",
        tmp_path / "nowhere": "no such folder",
        tmp_path / "empty": "no policy in this folder",
        tmp_path / "run" / "irl" / "reward": "a reward, and no language model",
    }.items():
        with pytest.raises(UserError, match=words):
            find_policy(place)
