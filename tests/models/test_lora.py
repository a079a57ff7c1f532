"""LoRA: what trains, what the reference is, and that folding adapters in changes no bit of the base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rayalign.config.model import LearnerConfig, LoraConfig
from rayalign.errors import UserError
from rayalign.models.batch import token_batch
from rayalign.models.policy import PolicyModel
from tests.models.tiny import load_plain, model_config, plain_logprobs, random_sequences

SEQUENCES = random_sequences(4, seed=0)


def adapted(folder: str, **keys) -> PolicyModel:
    """A policy with adapters that are not zero."""
    lora = LoraConfig(rank=4, alpha=8, **keys)
    policy = PolicyModel.load(folder, model_config(lora=lora), LearnerConfig())
    torch.manual_seed(3)
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.1)
    return policy.eval()


def logprobs(policy: PolicyModel) -> torch.Tensor:
    with torch.no_grad():
        return policy(token_batch(SEQUENCES, np.arange(4), packing=False))[0]


def test_only_adapters_train(untied):
    """In training mode, so that checkpointing and the adapter's own dropout are on."""
    policy = PolicyModel.load(untied, model_config(lora=LoraConfig()), LearnerConfig(gradient_checkpointing=True))
    trainable = [name for name, p in policy.named_parameters() if p.requires_grad]
    assert trainable and all(".lora_" in name for name in trainable)
    assert len(trainable) == 2 * 7 * 2  # A and B of seven linear layers in two blocks, none on the LM head
    assert policy.training and policy.lm.training


def test_the_reference_is_the_base(untied):
    """Without its adapter the model is bit by bit the one it was loaded from."""
    policy = adapted(untied)
    base = logprobs(PolicyModel.load(untied, model_config(), LearnerConfig(), trainable=False))
    with policy.without_adapter():
        torch.testing.assert_close(logprobs(policy), base, atol=0, rtol=0)
    assert float((logprobs(policy) - base).abs().mean()) > 0.05


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_folded_weights_are_the_adapted_model(model, request, tmp_path):
    """Under the base's names, as many as the base has; as a folder they give the adapted model's log-probs."""
    folder = request.getfixturevalue(model)
    policy, base = adapted(folder), load_plain(folder)
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    weights = {weight.name: weight.tensor().clone() for weight in policy.wire_weights()}
    assert {name: tuple(p.shape) for name, p in base.named_parameters()} == {
        weight.name: weight.shape for weight in policy.wire_weights()
    }
    assert all(torch.equal(parameter, before[name]) for name, parameter in policy.named_parameters())
    policy.save(tmp_path, weights)
    torch.testing.assert_close(
        plain_logprobs(load_plain(str(tmp_path)), SEQUENCES), logprobs(policy), atol=1e-4, rtol=0
    )


def test_target_modules_that_are_not_there(untied):
    with pytest.raises(UserError, match="model.lora.target_modules.*no_such_layer"):
        adapted(untied, target_modules=["no_such_layer"])
