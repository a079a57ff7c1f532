"""One model split over two vLLM workers, inside a Ray actor: the way a large policy is sampled from on a cluster."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rayalign.actors.fleet import RayFleet
from rayalign.config.placement import PlacementConfig
from rayalign.config.stage_base import SamplingConfig
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.ports import SamplerSetup
from rayalign.stages.groups import RolloutGroup
from tests.engines.samplers import END_TOKENS, PROMPTS
from tests.models.tiny import load_plain, model_config, plain_logprobs, tiny_lm


@pytest.mark.own_process
def test_two_workers_hold_one_model(tmp_path: Path) -> None:
    """Log-probs of what they draw together are those of the whole model."""
    tiny_lm().save_pretrained(tmp_path)
    alone = SamplerSetup(
        path=str(tmp_path), tokenizer="unused", chat_template=None, model=model_config(), end_token_ids=END_TOKENS,
        threads=1, seed=0, weight_transfer="gloo", kv_cache_gib=0.02,
    )  # fmt: skip
    fleet = RayFleet(PlacementConfig.model_validate({"rollout": {"cpus": 2}}))
    try:
        group = RolloutGroup(fleet.start("rollout", VllmSampler, [dataclasses.replace(alone, tensor_parallel=2)]))
        drawn = group.generate(PROMPTS, SamplingConfig(max_new_tokens=8), num_per_prompt=2, seed=1)
        rollout = group.fetch(drawn)
        group.workers.close()
    finally:
        fleet.close()
    with torch.no_grad():
        expected = plain_logprobs(load_plain(str(tmp_path)), rollout.sequences).numpy()
    assert len(rollout.sequences) == 10
    np.testing.assert_allclose(rollout.sampler_logprobs.values, expected, atol=1e-4)
