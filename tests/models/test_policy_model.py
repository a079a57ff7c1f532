"""The policy model against transformers' own forward pass: layouts, families, and what is written to disk."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayalign.config.model import LearnerConfig
from rayalign.errors import UserError
from rayalign.models.backbone import logit_head
from rayalign.models.batch import token_batch
from rayalign.models.policy import PolicyModel
from tests.models.tiny import (
    load_plain,
    model_config,
    plain_logits,
    plain_logprobs,
    random_sequences,
    save_tiny,
    sequences_of,
    tiny_lm,
)

SHAPES = {"opt": {"ffn_dim": 128, "word_embed_proj_dim": 64}, "gpt2": {"n_positions": 64}}


def load_policy(folder: str, *, chunk_tokens: int = 4096, **keys) -> PolicyModel:
    return PolicyModel.load(folder, model_config(**keys), LearnerConfig(logprob_chunk_tokens=chunk_tokens))


def everything(sequences, *, packing: bool):
    return token_batch(sequences, np.arange(len(sequences)), packing=packing)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_each_sequence_alone(untied, packing, attention, temperature):
    """Padded or packed, a token's log-prob is log_softmax of transformers' logits for its sequence alone."""
    sequences = random_sequences(6, seed=0)
    batch = everything(sequences, packing=packing)
    policy = load_policy(untied, attention=attention, chunk_tokens=7)
    logprobs, entropy = policy(batch, temperature=temperature, with_entropy=True)
    truth = plain_logprobs(load_plain(untied), sequences, temperature=temperature)
    torch.testing.assert_close(logprobs, truth, atol=2e-5, rtol=0)
    assert entropy.shape == logprobs.shape and (entropy > 0).all()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", [False, True])
def test_sequences_of_one_batch_do_not_see_each_other(untied, packing, attention):
    """Exchanging the first sequence for another of its length changes no bit of what follows."""
    first, other, second = [3, 4, 5], [9, 8, 7], ([11, 12], [13, 14, 15])
    policy = load_policy(untied, attention=attention)
    results = [
        policy(everything(sequences_of([(row[:1], row[1:]), second]), packing=packing))[0]
        for row in (first, other)
    ]
    torch.testing.assert_close(results[0][2:], results[1][2:], atol=0, rtol=0)
    assert not torch.equal(results[0][:2], results[1][:2])


@pytest.mark.parametrize(("model_type", "leaks"), [("falcon", True), ("opt", True), ("gpt2", False), ("mistral", False)])
def test_families_that_cannot_be_packed_are_refused(model_type, leaks, tmp_path):
    """Some attend across a pack without an error; a run that asks for packing stops before it trains on that."""
    folder = save_tiny(tmp_path / model_type, model_type=model_type, **SHAPES.get(model_type, {}))
    for packing in (False, True):
        learner = LearnerConfig(packing=packing)
        if packing and leaks:
            with pytest.raises(UserError, match=f"learner.packing: {model_type} models"):
                PolicyModel.load(folder, model_config(), learner)
        else:
            PolicyModel.load(folder, model_config(), learner)


def test_an_encoder_is_no_policy(tmp_path):
    """BERT has an LM head, and looks both ways unless its config says decoder."""
    folder = save_tiny(tmp_path / "bert", model_type="bert")
    with pytest.raises(UserError, match="bert: a bert model lets tokens see those behind them; give a decoder"):
        load_policy(folder)
    load_policy(save_tiny(tmp_path / "decoder", model_type="bert", is_decoder=True))


def test_the_end_token_is_predicted_and_the_prompt_is_not(untied):
    """T17: T counts every response token, its end included, and no prompt token; their sum is log pi(y|x)."""
    sequences = sequences_of([([5, 6, 7], [8, 1]), ([9], [10, 11, 1])])
    batch = everything(sequences, packing=False)
    assert batch.labels.tolist() == [8, 1, 10, 11, 1]
    model = load_plain(untied)
    by_hand = plain_logits(model, np.array([5, 6, 7, 8, 1])).log_softmax(-1)
    logprobs, _ = load_policy(untied)(batch)
    assert float(logprobs[:2].detach().sum()) == pytest.approx(float((by_hand[2, 8] + by_hand[3, 1]).detach()), abs=1e-5)


def test_chunks_do_not_change_logprobs_nor_gradients(untied):
    """Any number of calls of the head, more than there are tokens included, gives the same numbers."""
    sequences = random_sequences(5, seed=3)
    results = []
    for chunk_tokens, most_labels in [(4096, 0), (1, 0), (3, 0), (2, 90)]:
        policy = load_policy(untied, chunk_tokens=chunk_tokens)
        batch = token_batch(sequences, np.arange(5), packing=False, most_labels=most_labels)
        logprobs, _ = policy(batch)
        (logprobs * torch.arange(len(logprobs))).sum().backward()
        results.append((logprobs.detach(), policy.lm.lm_head.weight.grad))
    for logprobs, gradient in results[1:]:
        torch.testing.assert_close(logprobs, results[0][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(gradient, results[0][1], atol=1e-4, rtol=1e-5)


def test_the_head_is_called_as_often_as_the_longest_rank_needs(untied):
    """Under ZeRO-3 each call is a collective: the number depends on `most_labels`, not on this rank's tokens."""
    policy = load_policy(untied, chunk_tokens=4)
    calls = []
    policy.lm.lm_head.register_forward_hook(lambda *_: calls.append(1))
    for sequences in (random_sequences(1, seed=0, longest=3), random_sequences(4, seed=1)):
        calls.clear()
        policy(token_batch(sequences, np.arange(len(sequences)), packing=False, most_labels=50))
        assert len(calls) == 13  # 50 / 4, rounded up


FAMILIES = {
    "gemma2": {"final_logit_softcapping": 3.0, "head_dim": 32, "query_pre_attn_scalar": 32},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 4.0},
    "qwen3": {"head_dim": 32},
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_families_that_scale_or_cap_their_logits(model_type):
    """What some families do behind the LM head belongs to the policy's distribution."""
    model = tiny_lm(model_type=model_type, **FAMILIES[model_type])
    tokens = torch.tensor([[3, 4, 5, 6]])
    hidden = model.base_model(input_ids=tokens).last_hidden_state[0]
    logits = plain_logits(model, tokens[0].numpy())
    torch.testing.assert_close(logit_head(model)(hidden), logits, atol=1e-5, rtol=1e-5)
    plain = model.get_output_embeddings()(hidden)
    assert (model_type == "qwen3") == torch.allclose(plain, logits, atol=1e-3), "the family has nothing to test"


def test_dropout_is_off_while_training(tmp_path):
    """A sampler has no dropout: two passes of a training GPT-2, whose config asks for 0.1, are equal."""
    folder = save_tiny(tmp_path / "gpt2", model_type="gpt2", **SHAPES["gpt2"])
    policy = load_policy(folder)
    assert policy.training and policy.lm.config.resid_pdrop == 0.1
    batch = everything(random_sequences(3, seed=0), packing=False)
    assert torch.equal(policy(batch)[0], policy(batch)[0])


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_a_saved_folder_loads_and_gives_the_same_logits(model, request, tmp_path):
    """Weights go by their wire names, tied ones once; transformers finds nothing missing."""
    folder = request.getfixturevalue(model)
    policy = load_policy(folder)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.01)
    weights = {w.name: w.tensor().clone() for w in policy.wire_weights()}
    assert ("lm_head.weight" in weights) == (model == "untied")
    policy.save(tmp_path / "saved", weights)
    sequences = random_sequences(3, seed=5)
    expected, _ = policy(everything(sequences, packing=False))
    torch.testing.assert_close(plain_logprobs(load_plain(str(tmp_path / "saved")), sequences), expected)
    again, _ = load_policy(str(tmp_path / "saved"))(everything(sequences, packing=False))
    torch.testing.assert_close(again, expected, atol=0, rtol=0)
