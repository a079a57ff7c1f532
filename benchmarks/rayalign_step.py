"""One contender of step.py: rayalign's policy-only step, through the groups and fleets that the product runs.

generate (vLLM) -> score (a fixed reward function) -> one policy update (DeepSpeed) -> weight sync
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import workload
from channel import Channel, Record
from workload import Work

from rayalign.config.improve import PolicyStepConfig
from rayalign.config.model import LearnerConfig, LoraConfig, ModelConfig, OptimizerConfig
from rayalign.config.placement import PlacementConfig
from rayalign.config.reward import RewardConfig
from rayalign.config.stage_base import SamplingConfig
from rayalign.engines.function_reward import FunctionReward
from rayalign.engines.policy import PolicyEngine
from rayalign.engines.vllm_backend.sampler import VllmSampler
from rayalign.ports import Fleet, PolicySetup, RewardSetup, SamplerSetup
from rayalign.stages.groups import PolicyGroup, RewardGroup, RolloutGroup
from rayalign.telemetry.metrics import values
from rayalign.types import Ragged, Sequences, TokenizedPrompts

END_TOKEN = 2


@dataclass(frozen=True)
class LoopSetup:
    """What is trained, and how."""

    model: str  # a folder that workload.make_model wrote
    dtype: str
    work: Work = workload.CORES
    zero_stage: int = 0
    lora: bool = False
    attention: str = "sdpa"

    @property
    def model_config(self) -> ModelConfig:
        """The model in this dtype."""
        lora = LoraConfig() if self.lora else None
        return ModelConfig(
            path=self.model, dtype=self.dtype, max_length=self.work.max_length, lora=lora, attention=self.attention
        )

    @property
    def sampling(self) -> SamplingConfig:
        """Exactly as many tokens as the work says."""
        return SamplingConfig(max_new_tokens=self.work.new_tokens, ignore_eos=True)


class StepLoop:
    """The inner loop of `stages/irl.py` (no reward learning), with a clock around each phase."""

    def __init__(self, fleet: Fleet, setup: LoopSetup, *, gpu_memory_frac: float = 0.85) -> None:
        self._setup, self._steps = setup, 0
        self._prompts = tokenized_prompts(Path(setup.model))
        sampler = sampler_setup(
            setup, threads=fleet.threads("rollout"), transfer=fleet.weight_transfer, gpu_memory_frac=gpu_memory_frac
        )
        self.rollout = RolloutGroup(fleet.start("rollout", VllmSampler, [sampler] * fleet.num_workers("rollout")))
        rewards = [reward_setup(setup)] * fleet.num_workers("reward")
        self.reward = RewardGroup(fleet.start("reward", function_reward, rewards))
        workers = fleet.start("policy", PolicyEngine, [policy_setup(setup)] * fleet.num_workers("policy"))
        fleet.connect(workers, self.rollout.workers)
        self.policy = PolicyGroup(workers, self.rollout)
        self.policy.sync()

    def step(self) -> Record:
        """One step. Seconds of each phase as the controller sees it, and as its worker was busy with it."""
        record: Record = {}
        prompts, work = self._next_prompts(), self._setup.work
        started = time.perf_counter()
        with self._phase(record, "generate", self.rollout):
            batch = self.rollout.generate(prompts, self._setup.sampling, num_per_prompt=work.samples, seed=self._steps)
        with self._phase(record, "score", self.reward):
            scores = self.reward.score(batch)
        with self._phase(record, "improve", self.policy):
            self.policy.improve(batch, scores)
        with self._phase(record, "sync", self.policy):
            self.policy.sync()
        record["step_s"] = time.perf_counter() - started
        record["tokens"] = float(sum(stored.summary.num_response_tokens for stored in batch))
        if record["tokens"] != work.tokens:
            raise RuntimeError(f"{record['tokens']:g} tokens were drawn, not {work.tokens}")
        return record

    def mismatch(self) -> float:
        """Mean |log-prob difference| between vLLM and the trainer after the steps so far: did the syncs arrive?"""
        batch = self.rollout.generate(self._next_prompts(), self._setup.sampling, num_per_prompt=2, seed=self._steps)
        return values(self.policy.mismatch(batch))["mismatch_mean"]

    def close(self) -> None:
        """Ends the groups."""
        for group in (self.policy, self.reward, self.rollout):
            group.workers.close()

    def _next_prompts(self) -> TokenizedPrompts:
        count = self._setup.work.prompts
        first = self._steps * count % workload.NUM_PROMPTS
        self._steps += 1
        return self._prompts.take(np.arange(first, first + count))

    @contextmanager
    def _phase(self, record: Record, name: str, group: Any) -> Iterator[None]:
        busy_s, started = group.workers.busy_s, time.perf_counter()
        yield
        record[f"{name}_s"] = time.perf_counter() - started
        record[f"{name}_busy_s"] = group.workers.busy_s - busy_s


def tokenized_prompts(folder: Path) -> TokenizedPrompts:
    """The workload's prompts."""
    rows = workload.prompt_tokens(folder)
    return TokenizedPrompts(Ragged.from_list(rows), np.arange(len(rows)))


def sampler_setup(
    setup: LoopSetup, *, threads: int, transfer: str, gpu_memory_frac: float, **more: Any
) -> SamplerSetup:
    """vLLM as `stages/context.py` sets it up."""
    return SamplerSetup(
        path=setup.model,
        tokenizer=setup.model,
        chat_template=None,
        model=setup.model_config,
        end_token_ids=(END_TOKEN,),
        threads=threads,
        seed=0,
        weight_transfer=transfer,
        gpu_memory_frac=gpu_memory_frac,
        **more,
    )


def policy_setup(setup: LoopSetup) -> PolicySetup:
    """No KL, one optimiser step a batch, the workload's AdamW."""
    improve = PolicyStepConfig(
        prompts_per_step=setup.work.prompts,
        samples_per_prompt=setup.work.samples,
        kl_coef=0.0,
        optimizer=OptimizerConfig(**workload.OPTIMIZER),
    )
    return PolicySetup(
        path=setup.model,
        model=setup.model_config,
        learner=LearnerConfig(zero_stage=setup.zero_stage),
        config=improve,
        temperature=1.0,
        total_steps=10**6,
        max_staleness=0,
        seed=0,
    )


def reward_setup(setup: LoopSetup) -> RewardSetup:
    """What a reward worker is built from; a function uses the tokenizer alone."""
    numbers = np.empty(0, dtype=np.int64)
    return RewardSetup(
        path=setup.model,
        tokenizer=setup.model,
        chat_template=None,
        model=setup.model_config,
        learner=LearnerConfig(),
        config=RewardConfig(init=setup.model),
        rounds=1,
        seed=0,
        demonstrations=Sequences(Ragged.from_list([]), numbers, numbers, np.empty(0, dtype=bool)),
    )


def function_reward(setup: RewardSetup) -> FunctionReward:
    """The workload's reward as a worker."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(setup.tokenizer)
    return FunctionReward(workload.reward, tokenizer.decode, tokenizer.decode)


def placement_on_cores(backend: str, threads: int) -> PlacementConfig:
    """Groups take turns, so sampler and trainer may both have all the cores."""
    cores = {"cpus": threads}
    return PlacementConfig(backend=backend, rollout=cores, policy=cores, reward={"cpus": 1})


@contextmanager
def running_loop(placement: PlacementConfig, setup: LoopSetup) -> Iterator[StepLoop]:
    """Fleet and loop, as `run.py` makes them; ended at the end."""
    from rayalign.actors.fleet import LocalFleet, RayFleet

    fleet: Fleet = LocalFleet(placement) if placement.backend == "inprocess" else RayFleet(placement)
    try:
        loop = StepLoop(fleet, setup, gpu_memory_frac=placement.gpu_memory_frac)
        yield loop
        loop.close()
    finally:
        fleet.close()


def main() -> None:
    """Answers orders until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    parser.add_argument("--threads", required=True, type=int)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--backend", default="ray", choices=["ray", "inprocess"])
    arguments = parser.parse_args()
    channel = Channel()
    setup = LoopSetup(arguments.model, arguments.dtype, attention=arguments.attention)
    with running_loop(placement_on_cores(arguments.backend, arguments.threads), setup) as loop:
        loop.step()
        channel.ready(mismatch_mean=loop.mismatch())
        channel.serve(loop.step)


if __name__ == "__main__":
    main()
