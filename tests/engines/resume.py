"""Engines that are saved half-way: what they do next, and what an engine that takes up their state does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rayalign.config.improve import CriticConfig
from rayalign.config.model import LoraConfig, OptimizerConfig
from rayalign.storage.checkpoints import STATE
from rayalign.telemetry.metrics import values
from rayalign.types import Rollout
from tests.engines.toy import (
    GROUP_SCORES,
    GROUPS,
    demonstrations,
    implicit_engine,
    policy_engine,
    reward_engine,
    rollout_of,
    samples,
    scores_of,
)
from tests.models.tiny import learner_config

FAST = OptimizerConfig(learning_rate=3e-3, eps=1e-3, schedule="linear")
Make = Callable[[str], Any]
Act = Callable[[Any], Any]


def cases() -> dict[str, tuple[Make, list[Act]]]:
    """By name: how the engine is built, and what it does, one thing after the other."""
    found: dict[str, tuple[Make, list[Act]]] = {}
    for name, settings in {
        "ZeRO-0": {"zero_stage": 0},
        "ZeRO-1": {"zero_stage": 1},
        "ZeRO-2 packed": {"zero_stage": 2, "packing": True},
        "ZeRO-3": {"zero_stage": 3},
    }.items():
        found[f"policy {name}"] = (_policy(settings), [_improve, _move_reference, _improve, _improve, _improve])
    found["policy LoRA"] = (_policy({"zero_stage": 0}, lora=LoraConfig(rank=4, alpha=8)), [_improve] * 3)
    found["policy critic"] = (_with_critic, [_start_critic, _improve, _improve, _improve])
    found["reward warm"] = (_reward(start="warm"), [_update, _update, _update])
    found["reward fresh"] = (_reward(start="fresh", replay="cumulative", normalise="samples"), [_update, _update, _update])
    for loss in ("log_sigmoid", "dft"):
        found[f"implicit {loss}"] = (_implicit(loss), [_begin, _fit, _fit, _fit, _begin_second, _fit])
    return found


def halfway(folder: str, root: Path) -> dict[str, Any]:
    """Every case: half of its acts, a checkpoint below `root`, and what the other half brings."""
    found = {}
    for name, (make, acts) in cases().items():
        engine, half = make(folder), (len(acts) + 1) // 2
        for act in acts[:half]:
            act(engine)
        place = root / name.replace(" ", "-")
        (place / STATE).mkdir(parents=True, exist_ok=True)
        engine.save_state(str(place))
        found[name] = _rest(engine, acts[half:])
        assert engine.state_files(True)
    return found


def resumed(folder: str, root: Path) -> dict[str, Any]:
    """Every case from its checkpoint: what the other half brings."""
    found = {}
    for name, (make, acts) in cases().items():
        engine = make(folder)
        engine.load_state(str(root / name.replace(" ", "-")))
        found[name] = _rest(engine, acts[(len(acts) + 1) // 2 :])
    return found


def _rest(engine: Any, acts: list[Act]) -> list[Any]:
    return [act(engine) for act in acts]


def _policy(learner: dict[str, Any], **keys: Any) -> Make:
    config = learner_config(micro_batch_tokens=32, **learner)

    def make(folder: str) -> Any:
        engine = policy_engine(
            folder, learner=config, kl_coef=0.1, epochs=2, minibatches=2, advantage="rloo", optimizer=FAST, **keys
        )
        engine.folder = folder
        return engine

    return make


def _with_critic(folder: str) -> Any:
    learner = learner_config(zero_stage=2, micro_batch_tokens=32)
    engine = policy_engine(folder, learner=learner, advantage="gae", critic=CriticConfig(optimizer=FAST), kl_coef=0.1)
    engine.folder = folder
    return engine


def _reward(**config: Any) -> Make:
    return lambda folder: reward_engine(folder, demonstrations(), steps=3, **config)


def _implicit(loss: str) -> Make:
    return lambda folder: implicit_engine(folder, epochs=3, batch_size=4, rounds=2, demonstrations={"loss": loss})


def _improve(engine: Any) -> dict[str, float]:
    rollout = rollout_of(engine.folder, GROUPS)
    drawn = Rollout(rollout.sequences, rollout.sampler_logprobs, engine.version)
    return _numbers(engine.improve([drawn], scores_of(GROUP_SCORES)))


def _move_reference(engine: Any) -> None:
    engine.move_reference()


def _start_critic(engine: Any) -> None:
    engine.start_critic(engine.folder)


def _update(engine: Any) -> dict[str, float]:
    return _numbers(engine.update([samples(6, version=engine.version, seed=40 + engine.version)]))


def _begin(engine: Any) -> int:
    return engine.begin_round(0, np.arange(6), [samples(6)])


def _begin_second(engine: Any) -> int:
    return engine.begin_round(1, np.arange(6), [samples(6, seed=50)])


def _fit(engine: Any) -> dict[str, float]:
    return _numbers(engine.fit_step([]))


def _numbers(metrics: Any) -> dict[str, float]:
    left_out = ("update_s", "pair_accuracy")  # ties at equal log-probs fall either way by a rounding
    return {name: value for name, value in values(metrics).items() if name not in left_out}


def numbers(found: Any) -> Iterator[float]:
    """All numbers of a nested result, in order."""
    if isinstance(found, dict):
        found = list(found.values())
    if isinstance(found, list):
        for part in found:
            yield from numbers(part)
    elif found is not None:
        yield float(found)
