"""The token reward: the states that it reads, its weights by hand, and folders that others read as a plain LM."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rayalign.config.model import LoraConfig
from rayalign.errors import UserError
from rayalign.models.batch import token_batch
from rayalign.models.rewards import load_reward
from rayalign.models.token_reward import TokenRewardModel, TokenRewardSettings
from rayalign.objectives.ava import AvaTokens
from tests.models.tiny import (
    VOCABULARY,
    learner_config,
    load_plain,
    model_config,
    plain_logits,
    random_sequences,
)

PLAIN = TokenRewardSettings(
    pretrained_q=True, reward_weights=False, weights_scale="length", sigma_floor=0.1, alpha=10.0, beta=0.5
)
WEIGHTED = replace(PLAIN, reward_weights=True)
SEQUENCES = random_sequences(6, seed=0)


def fresh(folder: str, settings: TokenRewardSettings = WEIGHTED, *, seed: int = 0, **keys) -> TokenRewardModel:
    dtype, lora = keys.pop("dtype", "float32"), keys.pop("lora", None)
    model = model_config(dtype=dtype, lora=lora)
    return TokenRewardModel.from_backbone(folder, model, learner_config(**keys), settings, seed=seed)


def lively(model: TokenRewardModel) -> TokenRewardModel:
    """With heads far from where they begin."""
    with torch.no_grad():
        for index, parameter in enumerate(model.heads.parameters()):
            generator = torch.Generator().manual_seed(index)
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def outputs(model: TokenRewardModel, *, packing: bool = False, rows: list[int] | None = None) -> AvaTokens:
    return model(token_batch(SEQUENCES, np.arange(6) if rows is None else np.array(rows), packing=packing))


@torch.no_grad()
def scores(model, *, packing: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    return model.scores(token_batch(SEQUENCES, np.arange(6), packing=packing))


def save(model: TokenRewardModel, folder: Path) -> str:
    model.save(folder, {weight.name: weight.tensor().clone() for weight in model.wire_weights()})
    return str(folder)


@pytest.mark.parametrize("packing", [False, True])
def test_rewards_read_the_state_after_a_token_and_q_the_one_before(untied, packing):
    """One sequence at a time, by transformers' own forward."""
    model, lm = lively(fresh(untied, PLAIN)), load_plain(untied)
    head = model.heads.reward
    expected: list[list[torch.Tensor]] = [[], [], [], [], []]
    for tokens, prompt_length in zip(SEQUENCES.tokens, SEQUENCES.prompt_lengths, strict=True):
        states = lm.base_model(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0, prompt_length:]
        reward = states @ head.weight.T + head.bias
        probs = plain_logits(lm, tokens)[prompt_length - 1 : -1].softmax(-1)
        labels = torch.from_numpy(tokens[prompt_length:])[:, None]
        q = (10 * probs).log_softmax(-1).gather(-1, labels)[:, 0]
        log_b = (5 * probs).log_softmax(-1).gather(-1, labels)[:, 0]
        deviations = (reward[:, 1].exp() ** 2 + 0.01) ** 0.5
        parts = AvaTokens(q, log_b, probs.log().gather(-1, labels)[:, 0], reward[:, 0], deviations)
        for column, part in zip(expected, parts, strict=True):
            column.append(part.detach())
    got = outputs(model, packing=packing)
    for part, column in zip(got, expected, strict=True):
        torch.testing.assert_close(part, torch.cat(column), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", ["length", "one"])
def test_weights_by_hand(untied, scale):
    """Attention among a response's own positions; its weights add up to 1, or to the number of tokens."""
    weighted, plain = (lively(fresh(untied, replace(s, weights_scale=scale))) for s in (WEIGHTED, PLAIN))
    plain.heads.reward.load_state_dict(weighted.heads.reward.state_dict())
    lm = load_plain(untied)
    found, bare = outputs(weighted), outputs(plain)
    start = 0
    for tokens, prompt_length in zip(SEQUENCES.tokens, SEQUENCES.prompt_lengths, strict=True):
        states = lm.base_model(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0, prompt_length:]
        queries, keys = states @ weighted.heads.query.weight.T, states @ weighted.heads.key.weight.T
        weights = (queries @ keys.T / queries.shape[-1] ** 0.5).softmax(-1).mean(0)
        weights = (weights * (len(states) if scale == "length" else 1)).detach()
        part = slice(start, start + len(states))
        torch.testing.assert_close(found.means[part], bare.means[part] * weights, atol=1e-4, rtol=1e-4)
        start += len(states)
    assert not torch.allclose(found.means, bare.means, atol=1e-2)
    torch.testing.assert_close((found.q, found.log_b), (bare.q, bare.log_b))


@pytest.mark.parametrize("settings", [WEIGHTED, replace(WEIGHTED, pretrained_q=False)], ids=["pretrained", "head"])
def test_packed_padded_alone_and_in_chunks_are_the_same(untied, settings):
    model, chunked = (lively(fresh(untied, settings, logprob_chunk_tokens=chunk)) for chunk in (4096, 3))
    whole = outputs(model)
    alone = [outputs(model, rows=[row]) for row in range(6)]
    joined = AvaTokens(*(torch.cat(column) for column in zip(*alone, strict=True)))
    for other in (outputs(model, packing=True), outputs(chunked), joined):
        torch.testing.assert_close(other, whole, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores(model, packing=True), scores(model), atol=1e-4, rtol=1e-4)


def test_token_rewards_sum_to_the_score(untied):
    model = lively(fresh(untied))
    values, tokens = scores(model)
    assert values.dtype == tokens.dtype == torch.float32 and (model.mean, model.std) == (0, 1)
    sums = torch.stack([part.sum() for part in tokens.split(SEQUENCES.response_lengths.tolist())])
    torch.testing.assert_close(values, sums)
    torch.testing.assert_close(tokens, outputs(model).means)


def test_fresh_heads_are_small_and_seeded(untied):
    """Rewards begin near N(0, 1), weights even; the seed alone decides the rest."""
    tokens = outputs(fresh(untied))
    assert float(tokens.means.abs().max()) < 0.5
    assert 0.6 < float(tokens.deviations.min()) and float(tokens.deviations.max()) < 1.6
    heads = [fresh(untied, seed=seed).heads.reward.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "settings", [PLAIN, WEIGHTED, replace(WEIGHTED, pretrained_q=False, weights_scale="one")], ids=["plain", "wt", "head"]
)
def test_a_saved_reward_comes_back(untied, settings, dtype, tmp_path):
    """By load_reward, which a scorer calls: the same kind, settings and scores."""
    model = lively(fresh(untied, settings, dtype=dtype))
    folder = save(model, tmp_path / "reward")
    restored = load_reward(folder, model_config(dtype=dtype), learner_config())
    assert isinstance(restored, TokenRewardModel) and restored.settings == settings
    assert not restored.training and restored.heads.reward.weight.dtype == torch.float32
    torch.testing.assert_close(scores(restored), scores(model), atol=0, rtol=0)
    torch.testing.assert_close(outputs(restored), outputs(model), atol=0, rtol=0)


@pytest.mark.parametrize("backbone", ["tied", "untied"])
def test_the_folder_is_a_plain_language_model_to_others(backbone, tmp_path, request):
    """transformers loads it; the safetensors beside the config, all of which vLLM takes, hold the LM's weights alone."""
    source = request.getfixturevalue(backbone)
    folder = save(lively(fresh(source, replace(WEIGHTED, pretrained_q=False))), tmp_path / "reward")
    lm, original = load_plain(folder), load_plain(source)
    tokens = next(iter(SEQUENCES.tokens))
    torch.testing.assert_close(plain_logits(lm, tokens), plain_logits(original, tokens), atol=0, rtol=0)
    beside = {name for file in Path(folder).glob("*.safetensors") for name in load_file(file)}
    assert beside == {name for file in Path(source).glob("*.safetensors") for name in load_file(file)}
    heads = load_file(Path(folder) / "rayalign_heads" / "model.safetensors")
    assert heads.keys() == {"reward.weight", "reward.bias", "query.weight", "key.weight", "q.weight"}
    assert heads["q.weight"].shape == (VOCABULARY, 64)
    told = json.loads((Path(folder) / "config.json").read_text())["rayalign_reward"]
    assert (told["kind"], told["alpha"], told["pretrained_q"]) == ("token", 10.0, False)


def test_the_policy_is_saved_without_a_trace_of_the_reward(untied, tmp_path):
    """Also where training started from a reward's folder."""
    first = save(fresh(untied), tmp_path / "reward")
    model = fresh(first)
    weights = {weight.name: weight.tensor().clone() for weight in model.wire_weights()}
    model.save(tmp_path / "again", weights)
    model.save_policy(tmp_path / "policy", weights)
    assert "rayalign" not in (tmp_path / "policy" / "config.json").read_text()
    assert not (tmp_path / "policy" / "rayalign_heads").exists()
    assert "rayalign_reward" in (tmp_path / "again" / "config.json").read_text()
    tokens = next(iter(SEQUENCES.tokens))
    first_logits, last_logits = (plain_logits(load_plain(f), tokens) for f in (untied, str(tmp_path / "policy")))
    torch.testing.assert_close(last_logits, first_logits, atol=0, rtol=0)


def test_adapters_are_folded_in(untied, tmp_path):
    """A LoRA run's folder holds the merged model under its own names; the heads train beside the adapters."""
    model = lively(fresh(untied, lora=LoraConfig(rank=4, alpha=8)))
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
    assert all(parameter.requires_grad for parameter in model.heads.parameters())
    restored = load_reward(save(model, tmp_path / "reward"), model_config(), learner_config())
    torch.testing.assert_close(scores(restored), scores(model), atol=1e-4, rtol=1e-4)


def test_a_folder_without_its_heads_is_told_in_a_line(untied, tmp_path):
    folder = save(fresh(untied), tmp_path / "reward")
    (tmp_path / "reward" / "rayalign_heads" / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"its rayalign_heads cannot be loaded .* give a whole folder"):
        load_reward(folder, model_config(), learner_config())
    config = json.loads((tmp_path / "reward" / "config.json").read_text())
    config["rayalign_reward"]["flavour"] = 3
    (tmp_path / "reward" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="flavour"):
        load_reward(folder, model_config(), learner_config())
