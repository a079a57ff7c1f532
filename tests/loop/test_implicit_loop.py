"""The implicit stage for real: when it samples and from which weights, what it exports, and held-out pairs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayalign.api import train
from rayalign.config.load import parse_config
from rayalign.data.template import Template, load_tokenizer
from rayalign.data.tokenize import tokenize_preferences
from rayalign.engines.scorer import RewardScorer
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.ports import ScorerSetup
from rayalign.types import Conversation, Message, Preference, Sequences
from tests.models.tiny import load_plain, plain_logprobs

pytestmark = pytest.mark.own_process
LOG = "RAYALIGN_TEST_GENERATIONS"
ROUNDS = 5


class Recorder(VllmSampler):
    """The built-in sampler, which writes down what it was asked and with which weights."""

    def generate(self, prompts, sampling, *, num_per_prompt, seed):
        """As the built-in one."""
        call = {
            "prompts": [tokens.tolist() for tokens in prompts.tokens],
            "max_new_tokens": sampling.max_new_tokens,
            "report": [self.weight_report().version, self.weight_report().digest],
        }
        with open(os.environ[LOG], "a") as log:
            log.write(json.dumps(call) + "\n")
        return super().generate(prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)


def _config(values: dict[str, Any], stages: list[dict[str, Any]]) -> dict[str, Any]:
    return {**values, "placement": {"backend": "inprocess"}, "stages": stages}


def _irft(base: str, **keys: Any) -> dict[str, Any]:
    """IRFT from the base model, beta .3, as in configs/planted/irft.yaml."""
    return {
        "kind": "implicit",
        "name": "irft",
        "policy": base,
        "beta": 0.3,
        "sampling": {"max_new_tokens": 26},
        "probe_size": 4,
        "optimizer": {"learning_rate": 1e-4},
        **keys,
    }


def test_t15_five_rounds_sample_five_slices_each_from_the_weights_of_the_one_before(
    loop_values: dict[str, Any], planted_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five generations on disjoint slices that cover the demonstrations; no two from the same weights. T = 1: one."""
    for rounds in (ROUNDS, 1):
        monkeypatch.setenv(LOG, str(tmp_path / f"calls{rounds}"))
        stage = _irft(str(planted_base / "base" / "policy"), rounds=rounds, slices=rounds > 1, max_steps=2)
        train(_config({**loop_values, "name": f"t{rounds}"}, [stage]), rollout=Recorder)
        calls = [json.loads(line) for line in (tmp_path / f"calls{rounds}").read_text().splitlines()]
        agent = [call for call in calls if call["max_new_tokens"] == 26 and len(call["prompts"]) > 4]
        assert len(agent) == rounds
        prompts = [tuple(prompt) for call in agent for prompt in call["prompts"]]
        assert len(prompts) == len(set(prompts)) == 200
        assert [call["report"][0] for call in agent] == [2 * number for number in range(rounds)]
        assert len({call["report"][1] for call in agent}) == rounds
    folder = tmp_path / "t1" / "irft"
    _check_export(folder, planted_base / "base" / "policy", planted_base, loop_values)


def _check_export(folder: Path, start: Path, world: Path, values: dict[str, Any]) -> None:
    """T16: the exported reward is beta log(policy / first model), found from its own folder."""
    chosen, _ = _pairs(world, limit=8)
    config = parse_config(_config(values, [_irft(str(start))]))
    setup = ScorerSetup(str(folder / "reward"), config.model, config.learner, token_rewards=True)
    found = RewardScorer(setup).score_sequences(chosen)
    by_hand = 0.3 * (_sums(folder / "policy", chosen) - _sums(start, chosen))
    np.testing.assert_allclose(found.values[np.argsort(found.rows)], by_hand, atol=1e-3)
    of_tokens = [float(row.sum()) for row in found.token_values]
    np.testing.assert_allclose(of_tokens, found.values, atol=1e-4)


def test_t19_irft_parts_chosen_from_rejected_more_than_sft(
    loop_values: dict[str, Any], planted_base: Path, tmp_path: Path
) -> None:
    """On pairs never trained on, from demonstrations alone: the mean gap of log-probs, and the share of pairs above 0.

    The gap alone also rises while a policy breaks, so that the share is asked for too. On three seeds the difference of the
    gaps was 1.0 to 1.1 nats after these 70 steps, and still none after 40.
    """
    sft = next(stage for stage in loop_values["stages"] if stage["name"] == "sft")
    stage = _irft(str(planted_base / "base" / "policy"), epochs=12, max_steps=70)
    train(_config({**loop_values, "name": "t19"}, [sft, stage]))
    chosen, rejected = _pairs(planted_base, limit=200)
    gaps = {
        name: _sums(tmp_path / "t19" / name / "policy", chosen) - _sums(tmp_path / "t19" / name / "policy", rejected)
        for name in ("sft", "irft")
    }
    assert gaps["irft"].mean() > gaps["sft"].mean() + 0.3
    assert (gaps["irft"] > 0).mean() > (gaps["sft"] > 0).mean()


def _pairs(world: Path, *, limit: int) -> tuple[Sequences, Sequences]:
    """Held-out preferences of the planted world."""
    lines = (world / "world" / "heldout_preferences.jsonl").read_text().splitlines()[:limit]
    rows = [json.loads(line) for line in lines]
    template = Template(load_tokenizer(world / "world" / "tokenizer"))

    def asked(prompt: str) -> Conversation:
        return (Message("user", prompt),)

    pairs = [Preference(asked(row["prompt"]), row["chosen"], row["rejected"]) for row in rows]
    return tokenize_preferences(pairs, template, max_length=40, overlong="error")


def _sums(folder: Path, sequences: Sequences) -> np.ndarray:
    """[B] log-probs of responses, by transformers alone."""
    with torch.no_grad():
        flat = plain_logprobs(load_plain(str(folder)), sequences)
    return np.array([float(part.sum()) for part in flat.split(sequences.response_lengths.tolist())])
