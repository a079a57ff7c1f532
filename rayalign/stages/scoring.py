"""A group that scores with a saved reward or a service, for the stages that need one and train none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.fits import LOG_RATIO
from rayalign.config.service import is_service
from rayalign.engines.reward_service import service_reward
from rayalign.engines.scorer import RewardScorer
from rayalign.errors import RayalignError, UserError
from rayalign.ports import ScorerSetup, ServiceSetup
from rayalign.stages.context import RunContext
from rayalign.stages.groups import RewardGroup
from rayalign.stages.inputs import locate_model
from rayalign.types import Sequences


def fixed_reward(
    context: RunContext, location: str, *, token_rewards: bool = False, starts_critic: bool = False
) -> tuple[Callable[[Any], Any], ScorerSetup | ServiceSetup]:
    """What builds a worker that scores, and from what: a saved reward, or the address of a service. Raises UserError."""
    if not is_service(location):
        return RewardScorer, scorer_setup(
            context, location, token_rewards=token_rewards, starts_critic=starts_critic
        )
    config = context.config
    return service_reward, ServiceSetup(
        url=location,
        service=config.placement.reward_service,
        tokenizer=context.tokenizer_path,
        chat_template=config.data.chat_template,
        trust_remote_code=config.model.trust_remote_code,
    )


def scorer_setup(
    context: RunContext, location: str, *, token_rewards: bool = False, starts_critic: bool = False
) -> ScorerSetup:
    """What scores with the reward at a location.

    Raises UserError where there is none, or one for other tokens, or one number a response where tokens' are asked for, or
    none of these where a critic is to start from it.
    """
    path = context.locate(location)
    of_tokens = (Path(path) / LOG_RATIO).is_file()
    if not of_tokens:
        path = locate_model(context, location)
        of_tokens = _check_kind(location, Path(path) / "config.json", token_rewards=token_rewards)
    if of_tokens and starts_critic:
        raise UserError(
            f"{location}: no head of one number a response, which a critic could start from; set improve.critic.init to a "
            "model, for instance the policy's"
        )
    model = context.config.model.model_copy(update={"lora": None})
    return ScorerSetup(path, model, context.config.learner, token_rewards)


def _check_kind(location: str, config: Path, *, token_rewards: bool) -> bool:
    """Whether it rewards tokens. What is wrong is told here, and not when samples are drawn and the reward is loaded."""
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    causal = any(str(name).endswith("ForCausalLM") for name in settings.get("architectures") or ())
    reward = settings.get("rayalign_reward")
    if causal and reward is None:
        raise UserError(f"{location}: a language model, and no reward; name one that a stage made (stage:STAGE/reward)")
    if token_rewards and (reward or {}).get("kind") != "token":
        raise UserError(
            f"{location}: a sequence-level reward, of one number a response; set token_rewards to false, or name one "
            "that has rewards of tokens (of a stage ava, log_ratio or implicit)"
        )
    return (reward or {}).get("kind") == "token"


def start_scorer(context: RunContext, location: str) -> RewardGroup:
    """A group of scorers; the caller closes its workers."""
    factory, setup = fixed_reward(context, location)
    return RewardGroup(context.fleet.start("reward", factory, [setup] * context.fleet.num_workers("reward")))


def every_score(reward: RewardGroup, sequences: Sequences) -> np.ndarray:
    """[B] scores to choose or to measure by. Raises RayalignError where one is no finite number."""
    scores = reward.score_sequences(sequences)
    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise RayalignError(
            f"{bad} of {len(scores)} samples have no score that is a finite number, and nothing can be chosen or measured "
            "by the others alone; see what the reward makes of these samples"
        )
    return scores


@contextlib.contextmanager
def scorer(context: RunContext, location: str) -> Iterator[RewardGroup]:
    """A group of scorers that ends with the block."""
    group = start_scorer(context, location)
    try:
        yield group
    finally:
        group.workers.close()
