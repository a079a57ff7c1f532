"""The reward model: pooling by hand, its head, and a folder that other programs read alike."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from rayalign.config.model import LearnerConfig
from rayalign.errors import UserError
from rayalign.models import backbone
from rayalign.models.batch import token_batch
from rayalign.models.reward import RewardModel
from tests.models.tiny import END, LLAMA, load_plain, model_config, random_sequences, save_tiny, sequences_of


def fresh(folder: str, *, pooling="last", seed: int = 0) -> RewardModel:
    return RewardModel.from_backbone(folder, model_config(), LearnerConfig(), pooling=pooling, seed=seed)


def fresh_in(folder: str, dtype: str) -> RewardModel:
    return RewardModel.from_backbone(folder, model_config(dtype=dtype), LearnerConfig(), pooling="last", seed=0)


def rewards(model: RewardModel, sequences, *, packing: bool = False) -> torch.Tensor:
    with torch.no_grad():
        return model(token_batch(sequences, np.arange(len(sequences)), packing=packing))


def weights_of(model: RewardModel) -> dict[str, torch.Tensor]:
    return {weight.name: weight.tensor().clone() for weight in model.wire_weights()}


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_pooling_by_hand(untied, pooling, packing):
    """One sequence at a time: the head on the last response token's state, or on the mean of the response's."""
    sequences = random_sequences(6, seed=0)
    model = fresh(untied, pooling=pooling)
    backbone, head = load_plain(untied).base_model, model.lm.score.weight
    expected = []
    for tokens, prompt_length in zip(sequences.tokens, sequences.prompt_lengths, strict=True):
        states = backbone(input_ids=torch.from_numpy(tokens)[None]).last_hidden_state[0, prompt_length:]
        expected.append((states[-1] if pooling == "last" else states.mean(0)) @ head[0])
    got = rewards(model, sequences, packing=packing)
    torch.testing.assert_close(got, torch.stack(expected).detach(), atol=1e-5, rtol=1e-5)


def test_a_fresh_head_is_small_and_seeded(untied):
    """It hardly prefers anything before it has learned, and the seed alone decides what."""
    heads = [fresh(untied, seed=seed).lm.score.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    width = heads[0].shape[-1]
    assert float(heads[0].detach().std()) == pytest.approx(0.1 / width**0.5, rel=0.3)


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_saved_reward_restores_pooling_and_normaliser(untied, pooling, tmp_path):
    """What the config carries under rayalign_reward comes back with the weights."""
    model = fresh(untied, pooling=pooling)
    model.mean, model.std = 1.25, 0.5
    model.save(tmp_path, weights_of(model))
    restored = RewardModel.from_pretrained(str(tmp_path), model_config())
    assert (restored.pooling, restored.mean, restored.std) == (pooling, 1.25, 0.5)
    sequences = random_sequences(4, seed=1)
    torch.testing.assert_close(rewards(restored, sequences), rewards(model, sequences), atol=0, rtol=0)


def test_transformers_reads_the_same_raw_score(untied, tmp_path):
    """AutoModelForSequenceClassification on right-padded text gives the raw last-token reward."""
    model = fresh(untied)
    model.save(tmp_path, weights_of(model))
    sequences = sequences_of([([5, 6], [7, 8, END]), ([9], [10, END]), ([11], [12, 13, 14])])
    padded = torch.zeros(3, 5, dtype=torch.long)
    for row, tokens in enumerate(sequences.tokens):
        padded[row, : len(tokens)] = torch.from_numpy(tokens)
    classifier = load_plain(str(tmp_path), AutoModelForSequenceClassification)
    scores = classifier(input_ids=padded, attention_mask=(padded != 0).long()).logits[:, 0]
    torch.testing.assert_close(scores.detach(), rewards(model, sequences), atol=1e-5, rtol=1e-5)


def test_a_pad_token_that_ends_responses_is_not_kept(tmp_path):
    """Where the tokenizer pads with its end token, others would take the token before the end for the last one."""
    backbone = save_tiny(tmp_path / "backbone", pad_token_id=END)
    model = fresh(backbone)
    model.save(tmp_path / "reward", weights_of(model))
    sequences = sequences_of([([5, 6], [7, 8, END])])
    classifier = load_plain(str(tmp_path / "reward"), AutoModelForSequenceClassification)
    score = classifier(input_ids=torch.from_numpy(next(iter(sequences.tokens)))[None]).logits[:, 0]
    torch.testing.assert_close(score.detach(), rewards(model, sequences), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_encoder_is_no_reward(family, dtype, tmp_path):
    """Its scores would change with the padding behind a response, which decoders never see."""
    keys = {**LLAMA, "model_type": family, "initializer_range": 0.02}
    config = AutoConfig.for_model(**keys, num_labels=1)
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    words = f"a {family} model lets tokens see those behind them; give a decoder"
    if family == "bert":  # RoBERTa's head is of two layers
        with pytest.raises(UserError, match=words):
            RewardModel.from_pretrained(str(tmp_path), model_config(dtype=dtype))
    with pytest.raises(UserError, match=words):
        fresh_in(str(tmp_path), dtype)


def test_an_encoder_with_flash_attention_is_told_by_its_layers(tmp_path, untied):
    """It cannot be tried without a GPU."""
    config = AutoConfig.for_model("bert", **{key: value for key, value in LLAMA.items() if key != "model_type"})
    encoder = AutoModelForSequenceClassification.from_config(config)
    decoder = load_plain(untied)
    for model in (encoder, decoder):
        model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(UserError, match="a bert model"):
        backbone.check_causal(encoder, "it")
    backbone.check_causal(decoder, "it")
