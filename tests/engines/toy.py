"""Small rounds for the policy and reward engines, and a report of them that must not depend on the number of ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rayalign.config.improve import CriticConfig, PolicyStepConfig
from rayalign.config.loops import ImplicitStage
from rayalign.config.model import LearnerConfig, LoraConfig, OptimizerConfig
from rayalign.config.reward import RewardConfig
from rayalign.engines.implicit import ImplicitEngine
from rayalign.engines.policy import PolicyEngine
from rayalign.engines.reward import RewardEngine
from rayalign.ports import ImplicitSetup, PolicySetup, RewardSetup
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Rollout, Scores, Sequences
from tests.models.tiny import (
    END,
    learner_config,
    load_plain,
    model_config,
    plain_logprobs,
    random_sequences,
    sequences_of,
)

GOOD, BAD = 50, 60  # the two arms: a response is good if it begins with GOOD
ARMS = sequences_of(
    [([5 + prompt], [arm, END]) for prompt in range(4) for arm in (GOOD, BAD, GOOD, BAD)],
    prompt_ids=np.arange(16) // 4,
)
ARM_SCORES = np.tile(np.array([1.0, 0.0], dtype=np.float32), 8)
GROUPS = random_sequences(10, seed=21, num_prompts=3)  # groups of 4, 3 and 3 rows, spread over the batch
GROUP_SCORES = np.random.default_rng(22).normal(size=10).astype(np.float32)


def rollout_of(folder: str, sequences: Sequences, *, version: int = 0, temperature: float = 1.0) -> Rollout:
    """The sequences as if a sampler with the weights in `folder` had drawn them."""
    with torch.no_grad():
        flat = plain_logprobs(load_plain(folder), sequences, temperature=temperature)
    return Rollout(sequences, Ragged(flat.numpy(), sequences.response_lengths), version)


def scores_of(scores: np.ndarray) -> list[Scores]:
    """One shard with everything."""
    return [Scores(np.arange(len(scores)), scores, reward_version=1)]


def policy_engine(
    folder: str,
    *,
    learner: LearnerConfig | None = None,
    lora: LoraConfig | None = None,
    temperature: float = 1.0,
    max_staleness: int = 0,
    **config: Any,
) -> PolicyEngine:
    """A policy engine at a learning rate that shows; `config` goes to PolicyStepConfig."""
    settings = {"optimizer": OptimizerConfig(learning_rate=3e-3, eps=1e-3, clip_norm=1e9), "kl_coef": 0.0} | config
    return PolicyEngine(
        PolicySetup(
            path=folder,
            model=model_config(lora=lora),
            learner=learner or learner_config(micro_batch_tokens=32),
            config=PolicyStepConfig(**settings),
            temperature=temperature,
            total_steps=100,
            max_staleness=max_staleness,
            seed=0,
        )
    )


def reward_engine(
    folder: str,
    demonstrations: Sequences,
    *,
    negatives: list[Sequences] | None = None,
    preferences: tuple[Sequences, Sequences] | None = None,
    learner: LearnerConfig | None = None,
    **config: Any,
) -> RewardEngine:
    """A reward engine of few and large steps; `config` goes to RewardConfig."""
    settings = {"optimizer": OptimizerConfig(learning_rate=3e-3, eps=1e-3), "steps": 8, "batch_size": 6} | config
    return RewardEngine(
        RewardSetup(
            path=folder,
            tokenizer="unused",
            chat_template=None,
            model=model_config(),
            learner=learner or learner_config(micro_batch_tokens=64),
            config=RewardConfig(init=folder, **settings),
            rounds=3,
            seed=0,
            demonstrations=demonstrations,
            negatives=negatives or [],
            preferences=preferences,
        )
    )


def demonstrations(num: int = 6, *, first: int = 0) -> Sequences:
    """Answers whose second token is GOOD, one to each prompt."""
    return _answers(num, GOOD, first=first, seed=31)


def samples(num: int = 6, *, first: int = 0, version: int = 0, seed: int = 32) -> Rollout:
    """Answers to the same prompts whose second token is BAD."""
    sequences = _answers(num, BAD, first=first, seed=seed)
    return Rollout(sequences, Ragged.from_list([[0.0] * n for n in sequences.response_lengths], np.float32), version)


def weights_of(engine: PolicyEngine) -> dict[str, torch.Tensor]:
    """A copy of the policy's whole weights, in float64."""
    return {name: tensor.double().clone() for name, tensor in engine.weights()}


def report(folder: str) -> dict[str, Any]:
    """A policy round and a reward round in this world, plainly, under ZeRO-3 and with adapters."""
    found: dict[str, Any] = {}
    lora = LoraConfig(rank=4, alpha=8)
    for name, stage, adapter in [("plain", 0, None), ("ZeRO-3", 3, None), ("ZeRO-3 LoRA", 3, lora)]:
        learner = learner_config(zero_stage=stage, micro_batch_tokens=32, packing=stage == 3)
        engine = policy_engine(folder, learner=learner, lora=adapter, kl_coef=0.1, epochs=2, minibatches=2)
        rollout = rollout_of(folder, GROUPS)
        before = weights_of(engine)
        metrics = values(engine.improve([rollout], scores_of(GROUP_SCORES)))
        after = weights_of(engine)
        moved = {name: after[name] - before[name] for name in after if not torch.equal(after[name], before[name])}
        mismatch = values(engine.mismatch([rollout]))
        if adapter is None:
            engine.move_reference()
        again = Rollout(rollout.sequences, rollout.sampler_logprobs, 1)
        kl = values(engine.improve([again], scores_of(GROUP_SCORES)))["kl_policy_to_ref"]
        del metrics["update_s"]
        found[name] = {"metrics": metrics, "moved": moved, "mismatch": mismatch, "kl": kl}
    found["moved reference"] = _kl_of_a_moved_reference(folder)
    found["critic"] = _with_critic(folder)
    found["implicit"] = {loss: _implicit(folder, loss) for loss in ("log_sigmoid", "dft")}
    reward = reward_engine(folder, demonstrations())
    metrics = values(reward.update([samples(4), samples(2, first=4)]))
    del metrics["update_s"]
    found["reward"] = {"metrics": metrics, "scores": reward.score([samples(5)])}
    return found


def _kl_of_a_moved_reference(folder: str) -> float:
    """Under ZeRO-3 as DeepSpeed comes, which keeps small weights gathered once it has seen a few passes."""
    engine = policy_engine(folder, learner=LearnerConfig(zero_stage=3, micro_batch_tokens=32), kl_coef=0.1)
    rollout = rollout_of(folder, GROUPS)
    for version in range(3):
        again = Rollout(rollout.sequences, rollout.sampler_logprobs, version)
        engine.improve([again], scores_of(GROUP_SCORES))
    engine.move_reference()
    again = Rollout(rollout.sequences, rollout.sampler_logprobs, 3)
    return values(engine.improve([again], scores_of(GROUP_SCORES)))["kl_policy_to_ref"]


def implicit_engine(
    folder: str, *, pairs: Any = None, loss: Any = None, learner: LearnerConfig | None = None, **config: Any
) -> ImplicitEngine:
    """An engine on six demonstrations, and on preference pairs if given; `config` goes to ImplicitStage."""
    fast = OptimizerConfig(learning_rate=3e-3, eps=1e-3)
    stage = ImplicitStage(policy=folder, **{"optimizer": fast, "beta": 0.5, "batch_size": 6, **config})
    return ImplicitEngine(
        ImplicitSetup(
            path=folder,
            model=model_config(),
            learner=learner or learner_config(micro_batch_tokens=64),
            config=stage,
            seed=0,
            demonstrations=demonstrations(6) if stage.demonstrations else None,
            preferences=pairs,
            loss=loss,
        )
    )


def _with_critic(folder: str) -> dict[str, Any]:
    """Two PPO updates, each with a step of the critic, under ZeRO-2."""
    critic = CriticConfig(optimizer=OptimizerConfig(learning_rate=3e-3, eps=1e-3))
    learner = learner_config(zero_stage=2, micro_batch_tokens=32)
    engine = policy_engine(folder, learner=learner, advantage="gae", critic=critic, kl_coef=0.1)
    engine.start_critic(folder)
    for version in range(2):
        rollout = rollout_of(folder, GROUPS, version=version)
        metrics = values(engine.improve([rollout], scores_of(GROUP_SCORES)))
    del metrics["update_s"]
    return {"metrics": metrics}


def _implicit(folder: str, loss: str) -> dict[str, Any]:
    """Two passes over six demonstrations, two groups a step; DFT's averages go from rank to rank."""
    engine = implicit_engine(folder, epochs=2, batch_size=2, demonstrations={"loss": loss})
    steps = engine.begin_round(0, np.arange(6), [samples(6)])
    metrics = [values(engine.fit_step([])) for _ in range(steps)][-1]
    del metrics["update_s"]
    return {"steps": steps, "metrics": metrics}


def _answers(num: int, mark: int, *, first: int, seed: int) -> Sequences:
    random = np.random.default_rng(seed)
    rows = []
    for i in range(first, first + num):
        tail = random.integers(100, 150, size=random.integers(1, 4)).tolist()
        rows.append(([5 + i, 4], [tail[0], mark, *tail, END]))
    return sequences_of(rows, prompt_ids=np.arange(first, first + num))
