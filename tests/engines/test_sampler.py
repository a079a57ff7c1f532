"""vLLM itself, in this process: its samples, its log-probs, and its weights after several syncs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from rayalign.actors.sync import LocalClient
from rayalign.config.model import LoraConfig
from rayalign.errors import RayalignError, UserError
from rayalign.ports import TransferSetup
from tests.engines.samplers import END_TOKENS, PROMPTS, by_prompt, draw, vllm_sampler
from tests.engines.toy import policy_engine
from tests.models.tiny import load_plain, plain_logprobs

LOCAL = TransferSetup(backend="local", address="", port=0, num_receivers=1, deadline_s=10)


@pytest.fixture(scope="module")
def samplers(tied, untied):
    """Both engines in one process, as an in-process run has one beside its policy."""
    started = {folder: vllm_sampler(folder) for folder in (tied, untied)}
    yield started
    for sampler in started.values():
        sampler.close()


@pytest.fixture(params=["tied", "untied"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def sampler(samplers, folder):
    """The engine over this folder, with the folder's weights whatever a test did to it."""
    samplers[folder].load_checkpoint(folder, version=0)
    return samplers[folder]


def change(engine, *, seed: int) -> None:
    """New weights, as far from the old ones as an update never goes."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in engine._policy.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    engine.version += 1


def largest_difference(engine, rollout) -> float:
    return engine.mismatch([rollout])["mismatch_max"].value()


@pytest.mark.parametrize("lora", [None, LoraConfig(rank=4, alpha=8)])
def test_samples_have_the_policys_log_probs_after_every_sync(sampler, folder, lora):
    """Three syncs of changed weights: version and digest are the sender's, log-probs the trainer's own."""
    engine = policy_engine(folder, lora=lora)
    engine.connect(LocalClient(sampler), LOCAL)
    digests = set()
    for number in range(3):
        change(engine, seed=number)
        assert largest_difference(engine, draw(sampler)) > 0.1, "the change is too small to test a sync"
        sent = engine.sync()
        assert sampler.weight_report() == sent
        assert sent.version == number + 1
        digests.add(sent.digest)
        rollout = draw(sampler, seed=number)
        assert rollout.policy_version == number + 1
        assert engine.mismatch([rollout])["mismatch_mean"].value() < 1e-5
        assert largest_difference(engine, rollout) < 1e-4
    assert len(digests) == 3
    assert engine.sync().digest in digests  # the same weights have the same digest


def test_the_first_log_probs_are_those_of_transformers(sampler, folder):
    """Before any sync, and after load_checkpoint has brought the folder's weights back."""
    for _ in range(2):
        rollout = draw(sampler)
        with torch.no_grad():
            expected = plain_logprobs(load_plain(folder), rollout.sequences).numpy()
        np.testing.assert_allclose(rollout.sampler_logprobs.values, expected, atol=1e-4)
        engine = policy_engine(folder)
        engine.connect(LocalClient(sampler), LOCAL)
        change(engine, seed=3)
        engine.sync()
        sampler.load_checkpoint(folder, version=9)
        assert draw(sampler).policy_version == 9


def test_log_probs_are_those_of_the_tempered_distribution(sampler, folder):
    rollout = draw(sampler, temperature=0.5)
    with torch.no_grad():
        expected = plain_logprobs(load_plain(folder), rollout.sequences, temperature=0.5).numpy()
    np.testing.assert_allclose(rollout.sampler_logprobs.values, expected, atol=1e-4)


def test_a_sample_depends_on_seed_and_prompt_alone(sampler):
    """Neither the company of other prompts, nor their order, nor another engine's draws before change it."""
    whole = by_prompt(draw(sampler))
    backwards = by_prompt(draw(sampler, PROMPTS.take(np.arange(5)[::-1])))
    alone = by_prompt(draw(sampler, PROMPTS.take(np.array([2]))))
    assert backwards == whole
    assert alone[6] == whole[6]
    assert all(len({tuple(response) for response in group}) > 1 for group in whole.values())
    assert by_prompt(draw(sampler, seed=8)) != whole
    twice = PROMPTS.take(np.array([1, 1]))
    other_id = type(twice)(twice.tokens, np.array([3, 4]))
    first, second = by_prompt(draw(sampler, other_id)).values()
    assert first != second


def test_rows_come_prompt_by_prompt(sampler):
    """Three of each, with the prompt's own tokens in front."""
    sequences = draw(sampler).sequences
    assert sequences.prompt_ids.tolist() == np.repeat(PROMPTS.prompt_ids, 3).tolist()
    prompts = list(PROMPTS.tokens)
    for row, tokens in enumerate(sequences.prompts()):
        assert tokens.tolist() == prompts[row // 3].tolist()


def test_how_responses_end(sampler):
    """With an end token, which is kept, or cut at the limit; with ignore_eos all are cut."""
    sequences = draw(sampler, num=8).sequences
    assert 0 < sequences.ended.sum() < len(sequences)
    for response, ended in zip(sequences.responses(), sequences.ended, strict=True):
        assert (response[-1] in END_TOKENS) == ended or len(response) == 8
        assert ended or len(response) == 8
        assert not np.isin(response[:-1], END_TOKENS).any()
    forced = draw(sampler, num=8, ignore_eos=True).sequences
    assert (forced.response_lengths == 8).all() and not forced.ended.any()


def test_no_cached_prefix_outlives_its_weights(sampler, folder):
    """A prompt longer than a block of vLLM's cache (128 tokens on CPU), sampled before and after a sync."""
    long = type(PROMPTS)(PROMPTS.tokens.from_list([list(range(20, 170))]), np.array([0]))
    engine = policy_engine(folder)
    engine.connect(LocalClient(sampler), LOCAL)
    for number in range(2):
        change(engine, seed=number)
        engine.sync()
        for _ in range(2):  # the second one finds the first one's blocks
            assert largest_difference(engine, draw(sampler, long)) < 1e-4


def test_weights_that_are_not_finite_are_refused_before_anything_is_sent(sampler, folder):
    engine = policy_engine(folder)
    engine.connect(LocalClient(sampler), LOCAL)
    engine.sync()
    before, held = by_prompt(draw(sampler)), sampler.weight_report()
    with torch.no_grad():
        engine._policy.lm.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(RayalignError, match="up_proj.weight holds numbers that are not finite"):
        engine.sync()
    assert sampler.weight_report() == held
    assert by_prompt(draw(sampler)) == before


def test_a_checkpoint_that_is_none(sampler, tmp_path):
    """The sampler keeps what it had."""
    before = by_prompt(draw(sampler))
    with pytest.raises(UserError, match="holds no .*safetensors"):
        sampler.load_checkpoint(str(tmp_path), version=5)
    assert by_prompt(draw(sampler)) == before


def test_sync_before_connect(tied):
    with pytest.raises(RayalignError, match="sync before connect"):
        policy_engine(tied).sync()


@pytest.mark.parametrize("content", ["nothing", "an empty config", "a config without weights"])
def test_a_folder_that_vllm_cannot_load(content, tied, tmp_path):
    """One line that names it."""
    if content != "nothing":
        config = (Path(tied) / "config.json").read_text() if "weights" in content else "{}"
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match="vLLM cannot load") as raised:
        vllm_sampler(str(tmp_path))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


def test_only_the_template_says_what_ends_a_response(tied, tmp_path):
    """A model's generation config may list end tokens of its own (chat models do): samples go on past them."""
    folder = shutil.copytree(tied, tmp_path / "model")
    foreign = list(range(12, 100))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": foreign}))
    sampler = vllm_sampler(str(folder))
    sequences = draw(sampler, num=8).sequences
    sampler.close()
    responses = [response.tolist() for response in sequences.responses()]
    assert any(set(response[:-1]) & set(foreign) for response in responses)
    for response, ended in zip(responses, sequences.ended, strict=True):
        assert (response[-1] in END_TOKENS) is bool(ended)
        assert ended or len(response) == 8
