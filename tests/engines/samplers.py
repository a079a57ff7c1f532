"""A sampler over a tiny model, and prompts for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from rayalign.config.stage_base import SamplingConfig
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.ports import SamplerSetup
from rayalign.types import Ragged, Rollout, TokenizedPrompts
from tests.models.tiny import model_config

END_TOKENS = tuple(range(1, 12))  # so many that some responses end, and some do not
PROMPTS = TokenizedPrompts(Ragged.from_list([[20 + i, *range(30, 30 + i)] for i in range(5)]), np.arange(5) * 3)


def vllm_sampler(folder: str, **keys: Any) -> VllmSampler:
    """vLLM over a tiny model, in this process."""
    settings = {"weight_transfer": "local", "kv_cache_gib": 0.02} | keys
    return VllmSampler(
        SamplerSetup(
            path=folder,
            tokenizer="unused",
            chat_template=None,
            model=model_config(),
            end_token_ids=END_TOKENS,
            threads=1,
            seed=0,
            **settings,
        )
    )


def draw(
    sampler: VllmSampler, prompts: TokenizedPrompts = PROMPTS, *, num: int = 3, seed: int = 7, **sampling: Any
) -> Rollout:
    """Some short responses."""
    config = SamplingConfig(**{"max_new_tokens": 8, **sampling})
    return sampler.generate(prompts, config, num_per_prompt=num, seed=seed)


def by_prompt(rollout: Rollout) -> dict[int, list[list[int]]]:
    """{prompt id: responses, in order}."""
    found: dict[int, list[list[int]]] = {}
    for prompt_id, response in zip(rollout.sequences.prompt_ids, rollout.sequences.responses(), strict=True):
        found.setdefault(int(prompt_id), []).append(response.tolist())
    return found
