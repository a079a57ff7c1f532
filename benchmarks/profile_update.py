"""Where one policy update spends its time: `PolicyEngine.improve` on 32 sequences of 79 tokens, in this process.

    python benchmarks/profile_update.py --size 15m --dtype bfloat16 --threads 2

Prints seconds of the whole update and of its parts (measured without a profiler), then torch.profiler's operators by
their own CPU time. `step.py` runs it when a target is missed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import workload
from workload import Work


def samples(work: Work, vocabulary: int, seed: int = 0) -> tuple[Any, Any]:
    """A rollout of random tokens and random scores: the update's work does not depend on which."""
    import numpy as np

    from rayalign.types import Ragged, Rollout, Scores, Sequences

    random = np.random.default_rng(seed)
    rows = work.prompts * work.samples
    tokens = random.integers(4, vocabulary, size=(rows, work.prompt_tokens + work.new_tokens))
    sequences = Sequences(
        Ragged.from_list(list(tokens)),
        np.full(rows, work.prompt_tokens),
        np.repeat(np.arange(work.prompts), work.samples),
        np.zeros(rows, dtype=bool),
    )
    logprobs = np.full(work.tokens, -np.log(vocabulary), dtype=np.float32)
    sampled = Ragged(logprobs, np.full(rows, work.new_tokens))
    scores = Scores(np.arange(rows), random.normal(size=rows).astype(np.float32), reward_version=0)
    return Rollout(sequences, sampled, policy_version=0), scores


class Parts:
    """Seconds inside chosen methods, counted around them."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Counts the seconds that `owner.method` takes as `name`."""
        original: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - started

        setattr(owner, method, timed)

    def take(self) -> dict[str, float]:
        """What was counted since the last call."""
        seconds, self.seconds = dict(self.seconds), defaultdict(float)
        return seconds


def watched(engine: Any) -> Parts:
    """Counts forward, LM head, backward and optimiser step of a policy engine."""
    import rayalign.models.policy as policy_module

    parts, deepspeed = Parts(), engine._learner._engine
    parts.watch(deepspeed, "forward", "forward (with the head)")
    parts.watch(policy_module, "chunked_logprobs", "  head, log-probs, entropy")
    parts.watch(deepspeed, "backward", "backward")
    parts.watch(deepspeed, "step", "optimiser step")
    return parts


def time_updates(engine: Any, batch: tuple[Any, Any], repetitions: int) -> dict[str, float]:
    """Median seconds of an update and of its parts."""
    rollout, scores = batch
    parts = watched(engine)
    laps = []
    for _ in range(repetitions + 1):
        engine.version = 0  # the same samples again are never too old
        started = time.perf_counter()
        engine.improve([rollout], [scores])
        laps.append({"update": time.perf_counter() - started} | parts.take())
    return {name: median(lap[name] for lap in laps[1:]) for name in laps[0]}


def operators(engine: Any, batch: tuple[Any, Any], top: int) -> str:
    """torch.profiler's table of one update."""
    from torch.profiler import ProfilerActivity, profile

    rollout, scores = batch
    engine.version = 0
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        engine.improve([rollout], [scores])
    return profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=top, max_name_column_width=48)


def main() -> None:
    """Builds, times, profiles, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="15m", choices=list(workload.ARCHITECTURES))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "eager"])
    parser.add_argument("--zero-stage", type=int, default=0, choices=[0, 1, 2, 3])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--top", type=int, default=18, help="operators shown")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    import torch
    from rayalign_step import LoopSetup, policy_setup

    from rayalign.engines.policy import PolicyEngine

    torch.set_num_threads(arguments.threads)
    work = workload.CORES
    with tempfile.TemporaryDirectory() as folder:
        workload.make_model(Path(folder), arguments.size, work)
        setup = LoopSetup(folder, arguments.dtype, work, zero_stage=arguments.zero_stage, attention=arguments.attention)
        engine = PolicyEngine(policy_setup(setup))
    batch = samples(work, workload.ARCHITECTURES[arguments.size]["vocab_size"])
    print(f"policy update, {arguments.size}, {arguments.dtype}, {arguments.threads} thread(s), seconds (medians)")
    for name, seconds in time_updates(engine, batch, arguments.repetitions).items():
        print(f"  {name:<30} {seconds:7.3f}")
    if arguments.top:
        print(operators(engine, batch, arguments.top))


if __name__ == "__main__":
    main()
