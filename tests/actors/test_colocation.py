"""Groups on the same GPUs, taking turns with Ray Train, on a Ray that declares two GPUs; none of them is really there."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray._private.state import state

from rayalign.actors import train as train_module
from rayalign.actors.deadline import fetch
from rayalign.actors.fleet import RayFleet
from rayalign.actors.ray_workers import RayWorkers
from rayalign.api import train
from rayalign.config.placement import PlacementConfig
from rayalign.config.stage_base import SamplingConfig
from rayalign.errors import CallFailed
from rayalign.ports import SamplerSetup
from rayalign.types import Ragged, Rollout, Sequences, TokenizedPrompts
from tests.actors.test_ray_groups import Engine
from tests.cli.conftest import parts  # noqa: F401 - a fixture: a tiny model, and a tokenizer

ROLES = ("policy", "reward", "rollout")
SHARED = {role: {"gpus": 2} for role in ROLES} | {"colocate": True, "deadlines": {"start_s": 120, "call_s": 60}}
APART = {"policy": {"gpus": 1}, "rollout": {"gpus": 1}, "deadlines": {"start_s": 120, "call_s": 60}}


@pytest.fixture(scope="module")
def two_gpus() -> Iterator[None]:
    """A Ray of this module's own that says it has two GPUs."""
    os.environ["RAY_worker_niceness"] = "0"
    ray.init(
        address="local", num_cpus=8, num_gpus=2, include_dashboard=False, object_store_memory=80 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def gloo_for_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train joins the ranks of declared GPUs over gloo: NCCL asks for real ones."""
    from ray.train import torch

    real = torch.TorchConfig
    monkeypatch.setattr(torch, "TorchConfig", lambda backend: real(backend={"nccl": "gloo"}.get(backend, backend)))


def start(fleet: RayFleet, role: str) -> RayWorkers:
    """A group of small engines."""
    return fleet.start(role, Engine, list(range(fleet.num_workers(role))))


def ranks_devices(setup: str, report: Callable[[Any], None]) -> None:
    """Rank 0 reports which GPUs each rank was given."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (dist.get_rank(), [str(gpu) for gpu in ray.get_gpu_ids()], setup))
    report(found)


def run_ranks(fleet: RayFleet) -> list[tuple[str, ...]]:
    """The GPUs that Ray Train's ranks have, in rank order."""
    reports: list[Any] = []
    fleet.run_ranks(ranks_devices, "sent", reports.append)
    assert len(reports) == 1
    assert [(rank, setup) for rank, _, setup in reports[0]] == [(i, "sent") for i in range(len(reports[0]))]
    return [tuple(gpus) for _, gpus, _ in reports[0]]


def gpus_of(workers: RayWorkers) -> list[tuple[str, ...]]:
    """The GPUs of each worker."""
    return [gpus for _, gpus in workers.devices()]


def test_colocated_workers_share_a_gpu_each_and_ray_train_takes_turns_with_them(two_gpus: None) -> None:
    """Worker i of every group has the same GPU; when the groups have ended, Ray Train's ranks have both GPUs."""
    fleet = RayFleet(PlacementConfig.model_validate(SHARED))
    groups = [start(fleet, role) for role in ROLES]
    policy, reward, rollout = (gpus_of(group) for group in groups)
    assert policy == reward == rollout
    assert sorted(policy) == [("0",), ("1",)]
    for group in groups:
        group.close()
    assert sorted(run_ranks(fleet)) == [("0",), ("1",)]
    fleet.close()


def test_ray_train_beside_a_living_sampler_has_another_gpu(two_gpus: None) -> None:
    """Without colocation the sampler stays warm through fine-tuning. Both GPUs are whole again after the test before."""
    fleet = RayFleet(PlacementConfig.model_validate(APART))
    sampler = start(fleet, "rollout")
    (trained_on,) = run_ranks(fleet)
    assert {gpus_of(sampler)[0], trained_on} == {("0",), ("1",)}
    assert sampler.submit(Engine.sleep, [(0.0,)], phase="still there").result() == [0]
    sampler.close()


class Parrot:
    """Answers with the prompt's first word; says in a file when it starts, draws and sleeps."""

    def __init__(self, setup: SamplerSetup) -> None:
        self._log = Path(setup.tokenizer).parent / "parrot.log"
        self._end = setup.end_token_ids[0]
        self._say(f"start with {_stage(setup.path)} over {setup.weight_transfer}")

    def _say(self, event: str) -> None:
        with self._log.open("a") as file:
            file.write(event + "\n")

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """One answer a prompt."""
        self._say("generate")
        num = len(prompts)
        tokens = Ragged.from_list([[*t.tolist(), int(t[0]), self._end] for t in prompts.tokens])
        sequences = Sequences(
            tokens, np.array([len(t) for t in prompts.tokens]), prompts.prompt_ids, np.ones(num, dtype=bool)
        )
        return Rollout(sequences, Ragged.from_list([[0.0, 0.0]] * num, np.float32), 0)

    def sleep(self) -> None:
        """Notes it."""
        self._say("sleep")


def _stage(path: str) -> str:
    """The stage that wrote a model; `base` for the one that was given."""
    return Path(path).parent.name if Path(path).name == "policy" else "base"


def test_a_run_of_sampling_and_fine_tuning_on_one_gpu(two_gpus: None, tmp_path: Path, parts: Path) -> None:  # noqa: F811
    """The sampler sleeps when it has drawn, makes room for Ray Train, and starts again with what was learned."""
    shutil.copytree(parts / "tokenizer", tmp_path / "tokenizer")
    rows = [{"prompt": f"Anna asks price {word}", "response": f"{word} price"} for word in ("lamp", "chair")]
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = {"kind": "sample", "sampling": {"max_new_tokens": 2}}
    values = {
        "name": "run",
        "run_dir": str(tmp_path),
        "model": {"path": str(parts / "model"), "tokenizer": str(tmp_path / "tokenizer"), "dtype": "float32",
                  "max_length": 32},
        "data": {"demonstrations": {"path": str(tmp_path / "demos.jsonl")}},
        "placement": {role: {"gpus": 1} for role in ROLES} | {"colocate": True, "deadlines": {"start_s": 120}},
        "telemetry": {"tensorboard": False},
        "stages": [
            {**sample, "name": "before", "policy": str(parts / "model")},
            {"kind": "sft", "max_steps": 2},
            {**sample, "name": "after", "policy": "stage:sft/policy"},
        ],
    }  # fmt: skip
    holder = ray.remote(num_gpus=1, num_cpus=0)(Engine).remote(0)  # leaves one
    try:
        train(values, rollout=Parrot)
    finally:
        ray.kill(holder)
    assert (tmp_path / "parrot.log").read_text().splitlines() == [
        *("start with base over ipc", "generate", "sleep"),
        *("start with sft over ipc", "generate", "sleep"),
    ]
    assert (tmp_path / "run" / "sft" / "policy" / "model.safetensors").exists()
    assert len((tmp_path / "run" / "after" / "samples.jsonl").read_text().splitlines()) == 2
    assert ray.is_initialized()  # a Ray that was there before is left there


def groups() -> dict[str, str]:
    """The state of every placement group."""
    return {group: entry["state"] for group, entry in ray.util.placement_group_table().items()}


def until(holds: Callable[[], Any], within_s: float = 120) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + within_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return bool(holds())


def test_ray_train_without_a_free_gpu_is_told_and_waits_no_longer(
    two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it takes the room when there is some, and no thread is left in Ray, which crashes a process at its end."""
    fleet = RayFleet(PlacementConfig.model_validate({**APART, "deadlines": {"start_s": 1}}))
    holders = [ray.remote(num_gpus=1, num_cpus=0)(Engine).remote(i) for i in range(2)]
    fetch([holder.sleep.remote(0.0) for holder in holders], deadline_s=120, what="holding")
    before, threads, listen = groups(), set(threading.enumerate()), train_module._listen

    def waiting() -> list[str]:
        return [group for group, now in groups().items() if group not in before and now == "PENDING"]

    def listens_when_it_waits(*arguments: Any) -> None:
        assert until(waiting)
        listen(*arguments)

    monkeypatch.setattr(train_module, "_listen", listens_when_it_waits)
    try:
        with pytest.raises(CallFailed, match="nothing heard from Ray Train for 1 s .*are its resources free"):
            run_ranks(fleet)
        assert {now for group, now in groups().items() if group not in before} == {"REMOVED"}
        assert set(threading.enumerate()) <= threads
        alive = [actor["ActorClassName"] for actor in state.actor_table(None).values() if actor["State"] != "DEAD"]
        assert "TrainController" not in alive
    finally:
        for holder in holders:
            ray.kill(holder)
    assert until(lambda: ray.available_resources().get("GPU") == 2, 30)
