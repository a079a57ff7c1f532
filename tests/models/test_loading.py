"""What can be wrong with a model's folder: one line each, and no silent random weights."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from rayalign.config.model import LearnerConfig
from rayalign.errors import UserError
from rayalign.models.backbone import from_scratch, load_pretrained
from rayalign.models.policy import PolicyModel
from rayalign.models.reward import RewardModel
from tests.models.tiny import LLAMA, model_config


def load(path) -> PolicyModel:
    return PolicyModel.load(str(path), model_config(), LearnerConfig())


@pytest.fixture
def copy(untied, tmp_path):
    """A folder of the untied model, to be broken."""
    return shutil.copytree(untied, tmp_path / "copy")


def one_line(raised, *words: str) -> None:
    """The message is one line that names each of the words."""
    text = str(raised.value)
    assert "\n" not in text and all(word in text for word in words), text


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError) as raised:
        load(tmp_path / "nowhere")
    one_line(raised, "nowhere", "check the path")


@pytest.mark.parametrize("loader", [load, lambda path: RewardModel.from_pretrained(str(path), model_config())])
def test_an_empty_folder(tmp_path, loader):
    with pytest.raises(UserError) as raised:
        loader(tmp_path)
    one_line(raised, str(tmp_path), "save_pretrained")


def test_weights_cut_short(copy):
    """A copy that was interrupted."""
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError) as raised:
        load(copy)
    one_line(raised, "cannot be loaded")


def test_missing_weights_are_not_made_up(copy):
    """transformers fills them with random numbers and says so in a log; here it is an error that names them."""
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as raised:
        load(copy)
    one_line(raised, "1 weights", "model.layers.1.mlp.up_proj.weight")


def test_weights_of_another_shape(copy):
    """The config of one model beside the weights of another."""
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(UserError) as raised:
        load(copy)
    one_line(raised, "another shape", "mlp")


def test_a_classifier_with_three_labels_is_no_reward(untied, tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = load_pretrained(
        AutoModelForSequenceClassification, untied, model_config(), num_labels=3, new_weights=["score.weight"]
    )
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError) as raised:
        RewardModel.from_pretrained(str(tmp_path), model_config())
    one_line(raised, "3 labels")


def test_a_policy_is_no_reward(untied):
    """Its folder has no score head, and none is made up."""
    with pytest.raises(UserError) as raised:
        RewardModel.from_pretrained(untied, model_config())
    one_line(raised, "score.weight")


@pytest.mark.parametrize(
    ("architecture", "words"),
    [
        ({"hidden_size": 64}, ["model_type"]),
        ({"model_type": "lama"}, ["'lama'"]),
        ({**LLAMA, "hiden_size": 64}, ["hiden_size", "spelling"]),
        ({**LLAMA, "hidden_size": "wide"}, ["hidden_size"]),
        ({"model_type": "vit"}, ["'vit'"]),
        ({**LLAMA, "num_attention_heads": 0}, ["'llama'", "zero"]),
        ({**LLAMA, "num_key_value_heads": 0}, ["'llama'", "zero"]),
        ({**LLAMA, "vocab_size": -5}, ["'llama'", "negative"]),
        ({**LLAMA, "pad_token_id": 500}, ["'llama'"]),
    ],
)
def test_scratch_architectures_that_are_none(architecture, words):
    with pytest.raises(UserError) as raised:
        from_scratch(architecture, model_config())
    one_line(raised, "scratch", *words)


def test_loading_and_saving_are_silent(untied, tmp_path, capfd):
    """No bars and no reports; what a person set up for transformers stays as it was."""
    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    policy = load(untied)
    RewardModel.from_backbone(untied, model_config(), LearnerConfig(), pooling="last", seed=0)
    policy.save(tmp_path, {weight.name: weight.tensor() for weight in policy.wire_weights()})
    load_pretrained(AutoModelForCausalLM, untied, model_config())
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
