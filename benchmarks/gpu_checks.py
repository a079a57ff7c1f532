"""What benchmarks/gpu_check.py runs and tests/gpu holds as tests: each check builds, verifies and times one thing.

A check takes a Case and returns the numbers it found; it raises Skipped where the machine lacks what it needs, and
AssertionError (or the product's own error) where something is wrong. Each runs in a process of its own.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import workload
from profile_update import samples
from workload import Work

MAX_MISMATCH = 5e-2  # nats a token between vLLM and the trainer, in bfloat16
STEPS = 4
GPU_SHARE = 0.25  # of a GPU's memory for vLLM: the trainers are on the same one; bare vLLM is given as much
Numbers = dict[str, Any]


class Skipped(Exception):
    """The machine cannot run this check; the message says why."""


@dataclass(frozen=True)
class Case:
    """The model a check works on."""

    model: str  # a folder that workload.make_model wrote
    size: str
    work: Work
    dtype: str = "bfloat16"


def versions(case: Case) -> Numbers:
    """The device and the packages, and whether this vLLM has the calls that rayalign makes."""
    import torch
    from vllm import LLM

    import rayalign.engines.vllm_backend.sender  # noqa: F401 - imports all that is used of vLLM's weight transfer

    calls = ("init_weight_transfer_engine", "start_weight_update", "finish_weight_update", "collective_rpc", "sleep",
             "wake_up", "reset_prefix_cache")  # fmt: skip
    missing = [call for call in calls if not hasattr(LLM, call)]
    assert not missing, f"this vLLM lacks {', '.join(missing)}"
    found = {name: _version(name) for name in ("torch", "vllm", "deepspeed", "ray", "transformers", "peft")}
    device = torch.cuda.get_device_properties(0)
    memory = f"{device.total_memory / 2**30:.0f} GiB"
    return found | {"cuda": torch.version.cuda, "gpu": device.name, "gpus": torch.cuda.device_count(), "memory": memory}


def bare_generation(case: Case) -> Numbers:
    """vLLM alone: what the engine gives."""
    from bare_vllm import BareEngine

    engine = BareEngine(case.model, case.dtype, case.work, gpu_memory_frac=GPU_SHARE)
    engine.step()
    records = [engine.step() for _ in range(STEPS)]
    return {"tokens_per_s": round(median(r["tokens"] / r["step_s"] for r in records))}


def ipc_colocated(case: Case) -> Numbers:
    """All groups on one GPU as Ray actors, weights by CUDA IPC: the step's parts, and the mismatch after syncs."""
    _need("ray")
    group = {"gpus": 1}
    return _loop_numbers(case, {"colocate": True, "rollout": group, "reward": group, "policy": group})


def nccl_separate(case: Case) -> Numbers:
    """Sampler and trainer on GPUs of their own, weights by nccl."""
    _need("ray")
    _need_gpus(2, "nccl joins a GPU of the trainer with a GPU of the sampler")
    return _loop_numbers(case, {"rollout": {"gpus": 1}, "policy": {"gpus": 1}})


def in_process(case: Case) -> Numbers:
    """The same step without Ray: all engines are objects of this process."""
    return _loop_numbers(case, {"backend": "inprocess", "rollout": {"gpus": 1}, "policy": {"gpus": 1}})


def lora_ipc(case: Case) -> Numbers:
    """Adapters are merged into what is sent."""
    _need("ray")
    group = {"gpus": 1}
    return _loop_numbers(case, {"colocate": True, "rollout": group, "reward": group, "policy": group}, lora=True)


def sleep_mode(case: Case) -> Numbers:
    """GPU memory before sleep, asleep and awake; after waking the same seed draws the same samples."""
    import numpy as np
    from rayalign_step import LoopSetup, sampler_setup, tokenized_prompts

    from rayalign.engines.vllm_backend.sampler import VllmSampler

    setup = LoopSetup(case.model, case.dtype, case.work)
    sampler = VllmSampler(sampler_setup(setup, threads=4, transfer="ipc", gpu_memory_frac=0.5, sleep_mode=True))
    prompts = tokenized_prompts(Path(case.model)).take(np.arange(8))

    def draw() -> np.ndarray:
        return sampler.generate(prompts, setup.sampling, num_per_prompt=2, seed=1).sequences.tokens.values

    before, awake = draw(), _used_gib()
    asleep_s = _timed(sampler.sleep)
    asleep = _used_gib()
    awake_s = _timed(sampler.wake_up)
    found = {"awake_gib": awake, "asleep_gib": asleep, "woken_gib": _used_gib(), "sleep_s": asleep_s, "wake_s": awake_s}
    assert asleep < awake / 2, f"asleep, vLLM still holds {asleep} of {awake} GiB"
    assert (draw() == before).all(), (
        "after waking, the same seed draws other samples: the weights are not what they were"
    )
    return found


def train_zero(stage: int) -> Callable[[Case], Numbers]:
    """A check of the policy update under one ZeRO stage."""

    def check(case: Case) -> Numbers:
        import torch
        from rayalign_step import LoopSetup, policy_setup

        from rayalign.engines.policy import PolicyEngine

        engine = PolicyEngine(policy_setup(LoopSetup(case.model, case.dtype, case.work, zero_stage=stage)))
        rollout, scores = samples(case.work, workload.ARCHITECTURES[case.size]["vocab_size"])
        torch.cuda.reset_peak_memory_stats()
        seconds = []
        for _ in range(STEPS):
            engine.version = 0  # the same samples again are never too old
            seconds.append(_timed(lambda: engine.improve([rollout], [scores])))
        tokens = int(rollout.sequences.tokens.lengths.sum())
        peak = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        return {"update_s": min(seconds), "tokens_per_s": round(tokens / min(seconds)), "peak_gib": peak}

    check.__doc__ = f"The policy update in bfloat16 under DeepSpeed ZeRO-{stage}, one rank."
    return check


def checkpoint_load(case: Case) -> Numbers:
    """A running vLLM takes the weights of another folder, as `evaluate` asks of it."""
    import numpy as np
    from rayalign_step import LoopSetup, sampler_setup, tokenized_prompts

    from rayalign.engines.vllm_backend.sampler import VllmSampler

    setup = LoopSetup(case.model, case.dtype, case.work)
    sampler = VllmSampler(sampler_setup(setup, threads=4, transfer="nccl", gpu_memory_frac=GPU_SHARE))
    prompts = tokenized_prompts(Path(case.model)).take(np.arange(4))

    def draw() -> np.ndarray:
        return sampler.generate(prompts, setup.sampling, num_per_prompt=1, seed=1).sequences.tokens.values

    first = draw()
    with tempfile.TemporaryDirectory() as folder:
        workload.make_model(Path(folder), case.size, case.work, dtype=case.dtype, seed=1)
        seconds = _timed(lambda: sampler.load_checkpoint(folder, version=1))
    assert not np.array_equal(draw(), first), "another model's weights draw the same samples"
    sampler.load_checkpoint(case.model, version=2)
    assert np.array_equal(draw(), first), "the first weights, loaded again, draw other samples"
    return {"load_s": seconds}


def tensor_parallel(case: Case) -> Numbers:
    """One model over two GPUs agrees with the trainer's log-probs."""
    _need_gpus(2, "tensor parallel splits a model over two")
    import numpy as np
    from rayalign_step import LoopSetup, policy_setup, sampler_setup, tokenized_prompts

    from rayalign.engines.policy import PolicyEngine
    from rayalign.engines.vllm_backend.sampler import VllmSampler
    from rayalign.telemetry.metrics import values

    setup = LoopSetup(case.model, case.dtype, case.work)
    split = sampler_setup(setup, threads=4, transfer="nccl", gpu_memory_frac=0.4)
    sampler = VllmSampler(replace(split, tensor_parallel=2))
    prompts = tokenized_prompts(Path(case.model)).take(np.arange(case.work.prompts))
    sampler.generate(prompts, setup.sampling, num_per_prompt=1, seed=0)
    rollout = sampler.generate(prompts, setup.sampling, num_per_prompt=case.work.samples, seed=1)
    sampler.close()
    mismatch = values(PolicyEngine(policy_setup(setup)).mismatch([rollout]))["mismatch_mean"]
    assert mismatch < MAX_MISMATCH, f"log-probs differ by {mismatch:.2g} nats a token"
    return {"tokens_per_s": round(case.work.tokens / rollout.generate_s), "mismatch": mismatch}


CHECKS: dict[str, Callable[[Case], Numbers]] = {
    "versions": versions,
    "bare_generation": bare_generation,
    "ipc_colocated": ipc_colocated,
    "lora_ipc": lora_ipc,
    "in_process": in_process,
    "nccl_separate": nccl_separate,
    "sleep_mode": sleep_mode,
    "checkpoint_load": checkpoint_load,
    **{f"train_zero{stage}": train_zero(stage) for stage in range(4)},
    "tensor_parallel": tensor_parallel,
}


def _loop_numbers(case: Case, placement: Numbers, *, lora: bool = False) -> Numbers:
    """Medians of a step's parts, and the mismatch before the first update and after the last sync."""
    from rayalign_step import LoopSetup, running_loop
    from step_report import PHASES, overhead

    from rayalign.config.placement import PlacementConfig

    config = PlacementConfig(gpu_memory_frac=GPU_SHARE, **placement)
    with running_loop(config, LoopSetup(case.model, case.dtype, case.work, lora=lora)) as loop:
        before = loop.mismatch()
        loop.step()
        records = [loop.step() for _ in range(STEPS)]
        after = loop.mismatch()
    for when, value in {"before the first update": before, "after the last sync": after}.items():
        assert value < MAX_MISMATCH, f"{when}, vLLM and the trainer differ by {value:.2g} nats a token"
    found = {f"{phase}_s": median(r[f"{phase}_s"] for r in records) for phase in PHASES}
    return found | {
        "step_s": median(r["step_s"] for r in records),
        "overhead_frac": median(overhead(r) for r in records),
        "tokens_per_s": round(median(r["tokens"] / r["generate_s"] for r in records)),
        "mismatch_before": before,
        "mismatch_after": after,
    }


def _need_gpus(number: int, why: str) -> None:
    import torch

    if torch.cuda.device_count() < number:
        raise Skipped(f"needs {number} GPUs, {torch.cuda.device_count()} there: {why}")


def _need(package: str) -> None:
    if _version(package) == "absent":
        raise Skipped(f"{package} is not installed")


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _used_gib() -> float:
    import torch

    free, total = torch.cuda.mem_get_info()
    return round((total - free) / 2**30, 2)


def _timed(call: Callable[[], Any]) -> float:
    import torch

    torch.cuda.synchronize()
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - started
