"""A sampler in a process of its own, called over a pipe, and a trainer that sends it weights over gloo."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import torch

from rayalign.config.stage_base import SamplingConfig
from rayalign.ports import TransferSetup
from rayalign.telemetry.metrics import values
from rayalign.types import Rollout
from tests.conftest import OF_RANKS
from tests.engines.samplers import PROMPTS, vllm_sampler
from tests.engines.toy import GROUP_SCORES, GROUPS, policy_engine, rollout_of, scores_of
from tests.engines.worlds import free_port
from tests.models.tiny import learner_config


class RemoteSampler:
    """VllmSampler's methods, by name, each with a deadline; satisfies the WeightClient Protocol."""

    def __init__(self, folder: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, folder), daemon=True)
        self.process.start()
        self.version = 0

    def call(self, method: str, *arguments: Any, deadline_s: float = 90, **named: Any) -> Any:
        """What the sampler's method gives back."""
        self._pipe.send((method, arguments, named))
        if not self._pipe.poll(deadline_s):
            raise TimeoutError(f"the sampler did not answer {method} within {deadline_s} s")
        value, error = self._pipe.recv()
        if error is not None:
            raise error
        return value

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.call("init_weight_transfer_engine", init_info)

    def start_weight_update(self) -> None:
        self.call("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.call("update_weights", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.call("finish_weight_update", self.version)

    def close(self) -> None:
        self.process.terminate()
        self.process.join(10)


class RankWithoutSampler:
    """What ranks above 0 are given: they never call it."""

    version = 0


def trainer(folder: str) -> list[dict[str, Any]]:
    """One rank: updates and syncs in turn; rank 0 alone speaks with the sampler."""
    sampler = RemoteSampler(folder) if os.environ["RANK"] == "0" else None
    engine = policy_engine(folder, learner=learner_config(zero_stage=3), temperature=1.0)
    setup = TransferSetup(backend="gloo", address="127.0.0.1", port=free_port(), num_receivers=1, deadline_s=90)
    engine.connect(sampler or RankWithoutSampler(), setup)
    found = []
    for version in range(2):
        engine.improve([rollout_of(folder, GROUPS, version=version)], scores_of(GROUP_SCORES))
        stale = values(engine.mismatch([_shared(sampler)]))
        sent = engine.sync()
        rollout = _shared(sampler)
        result = {"sent": sent, "drawn_version": rollout.policy_version, "stale_mean": stale["mismatch_mean"]}
        if sampler:
            result["held"] = sampler.call("weight_report")
        found.append(result | values(engine.mismatch([rollout])))
    if sampler:
        sampler.close()
    return found


def _shared(sampler: RemoteSampler | None) -> Rollout:
    """The sampler's draw, on all ranks."""
    drawn: list[Any] = [None]
    if sampler:
        drawn[0] = sampler.call("generate", PROMPTS, SamplingConfig(max_new_tokens=8), num_per_prompt=2, seed=1)
    torch.distributed.broadcast_object_list(drawn, src=0)
    return drawn[0]


def _serve(pipe: Connection, folder: str) -> None:
    for key in OF_RANKS:
        os.environ.pop(key, None)  # of the trainer's group
    torch.set_num_threads(1)
    sampler = vllm_sampler(folder, weight_transfer="gloo")
    while True:
        method, arguments, named = pipe.recv()
        try:
            pipe.send((getattr(sampler, method)(*arguments, **named), None))
        except Exception as error:  # noqa: BLE001 - handed to the caller, who raises it
            pipe.send((None, error))
