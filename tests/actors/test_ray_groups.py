"""Groups on a Ray that declares eight GPUs: disjoint devices, threads, deadlines, and errors that name the worker."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rayalign.actors.fleet import RayFleet
from rayalign.actors.ray_workers import RayWorkers
from rayalign.config.placement import PlacementConfig
from rayalign.config.stage_base import SamplingConfig
from rayalign.errors import CallFailed, Diverged, PlacementError, SyncError, WorkerLost
from rayalign.stages.groups import RolloutGroup
from rayalign.types import Ragged, Rollout, Stored, TokenizedPrompts
from tests.loop.test_sample_queue import Echo

EIGHT = {"policy": {"gpus": 4}, "reward": {"gpus": 2}, "rollout": {"gpus": 2}}


class SlowEcho(Echo):
    """Answers after a while."""

    takes_s = 0.5

    def __init__(self, setup: int) -> None:
        self.number = setup

    def generate(self, *arguments: Any, **keys: Any) -> Rollout:
        """As Echo."""
        time.sleep(self.takes_s)
        return super().generate(*arguments, **keys)


class Engine:
    """A small engine, to call through the real actors."""

    def __init__(self, setup: int) -> None:
        self.number = setup

    def threads(self) -> tuple[int, str]:
        """What the placement gave this worker."""
        import torch

        return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]

    def pid(self) -> int:
        """To be killed by."""
        return os.getpid()

    def sleep(self, seconds: float) -> int:
        """Busy for a while."""
        time.sleep(seconds)
        return self.number

    def fail(self) -> None:
        """A fault of the engine's own."""
        raise ValueError("the flux capacitor is empty\nsecond line")

    def out_of_step(self) -> None:
        """One of our errors."""
        raise SyncError("weights did not arrive")

    def diverge(self) -> None:
        """Numbers that are not finite, once too often; the second worker says so later than the first."""
        time.sleep(0.3 * self.number)
        raise Diverged(f"worker {self.number} has good weights")

    def length(self, values: list[Any]) -> int:
        """Stored values arrive as themselves."""
        return sum(len(v) for v in values)


@pytest.fixture(scope="module")
def eight_gpus() -> Iterator[None]:
    """A Ray of this module's own that says it has eight GPUs."""
    os.environ["RAY_worker_niceness"] = "0"
    ray.init(
        address="local", num_cpus=8, num_gpus=8, include_dashboard=False, object_store_memory=80 * 2**20,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


def start(fleet: RayFleet, role: str) -> RayWorkers:
    """A group of small engines."""
    return fleet.start(role, Engine, list(range(fleet.num_workers(role))))


@pytest.fixture
def policy(eight_gpus: None) -> Iterator[RayWorkers]:
    """Two policy workers with short deadlines."""
    values = {"policy": {"workers": 2, "cpus": 1}, "deadlines": {"call_s": 3}}
    workers = start(RayFleet(PlacementConfig.model_validate(values)), "policy")
    yield workers
    workers.close()


def test_separate_groups_get_disjoint_devices(eight_gpus: None) -> None:
    fleet = RayFleet(PlacementConfig.model_validate(EIGHT))
    groups = [start(fleet, role) for role in ("policy", "reward", "rollout")]
    devices = [gpus for group in groups for _, gpus in group.devices()]
    assert [len(group) for group in groups] == [4, 2, 2]
    assert all(len(gpus) == 1 for gpus in devices)
    assert len({gpu for gpus in devices for gpu in gpus}) == 8
    for group in groups:
        group.close()


def test_a_plan_that_does_not_fit_fails_before_any_actor_starts(eight_gpus: None) -> None:
    with pytest.raises(PlacementError, match=r"placement.rollout needs 4 bundle\(s\).*number 3 fits on no node"):
        RayFleet(PlacementConfig.model_validate({**EIGHT, "rollout": {"gpus": 4}}))
    states = [actor["state"] for actor in _actors()]
    assert "ALIVE" not in states


def test_a_cluster_that_is_busy_is_told_with_what_is_free(eight_gpus: None) -> None:
    fleet = RayFleet(PlacementConfig.model_validate(EIGHT))
    held = [start(fleet, role) for role in ("policy", "reward")]
    other = RayFleet(PlacementConfig.model_validate(EIGHT | {"deadlines": {"start_s": 1}}))
    with pytest.raises(PlacementError, match=r"placement of policy: no room for 4 bundle\(s\).* 2 of 8 GPU: other work"):
        start(other, "policy")
    for group in held:
        group.close()


def test_a_worker_uses_the_threads_of_its_cores(eight_gpus: None) -> None:
    fleet = RayFleet(PlacementConfig.model_validate({"policy": {"cpus": 2}, "reward": {"cpus": 1}}))
    workers = start(fleet, "policy")
    assert workers.submit(Engine.threads, [()], phase="threads").result() == [(2, "2")]
    workers.close()


def test_each_worker_answers_for_itself_and_stored_values_arrive(policy: RayWorkers) -> None:
    assert policy.submit(Engine.sleep, [(0.01,), (0.0,)], phase="sleep").result() == [0, 1]
    stored = [Stored(ray.put([1, 2])), Stored(ray.put([3]))]
    assert policy.submit(Engine.length, [(stored,)] * 2, phase="length").result() == [3, 3]


def test_a_silent_worker_is_named_when_its_deadline_passes(policy: RayWorkers) -> None:
    started = time.monotonic()
    with pytest.raises(CallFailed, match=r"^policy-1: policy update v7: no answer within 3 s \(placement.deadlines\)$"):
        policy.submit(Engine.sleep, [(0.0,), (30.0,)], phase="policy update v7").result()
    assert time.monotonic() - started < 6


def test_a_dead_worker_is_named_at_once(policy: RayWorkers) -> None:
    pids = policy.submit(Engine.pid, [(), ()], phase="pid").result()
    pending = policy.submit(Engine.sleep, [(2.5,), (2.5,)], phase="generate")
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(CallFailed, match="^policy-1: generate: the worker died"):
        pending.result()


def test_an_engine_s_own_fault_is_one_line(policy: RayWorkers) -> None:
    with pytest.raises(CallFailed, match="^policy-0: score: ValueError: the flux capacitor is empty$"):
        policy.submit(Engine.fail, [()], phase="score").result()


def test_our_errors_come_back_as_they_are(policy: RayWorkers) -> None:
    with pytest.raises(SyncError, match="^weights did not arrive$"):
        policy.submit(Engine.out_of_step, [()], phase="sync").result()


def test_workers_that_diverged_stay_in_service(policy: RayWorkers) -> None:
    """All of them, so that they can save."""
    with pytest.raises(Diverged, match="has good weights"):
        policy.submit(Engine.diverge, [()] * 2, phase="policy_update").result()
    assert policy.submit(Engine.sleep, [(0.0,)] * 2, phase="save").result() == [0, 1]


def test_a_replaced_worker_is_built_as_the_first_was(policy: RayWorkers) -> None:
    """One that died and one that hangs; the other keeps its place, and calls reach all of them again."""
    pids = policy.submit(Engine.pid, [(), ()], phase="pid").result()
    os.kill(pids[0], signal.SIGKILL)
    pending = policy.submit(Engine.sleep, [(0.0,), (0.0,)], phase="generate")
    with pytest.raises(WorkerLost, match="^policy-0: generate: the worker died"):
        pending.result()
    assert pending.survivors() == [None, 1]
    policy.replace([0])
    assert policy.submit(Engine.sleep, [(0.0,), (0.0,)], phase="generate").result() == [0, 1]

    os.kill(pids[1], signal.SIGSTOP)
    pending = policy.submit(Engine.sleep, [(0.0,), (0.0,)], phase="generate")
    with pytest.raises(WorkerLost, match="^policy-1: generate: no answer within 3 s"):
        pending.result()
    assert pending.survivors() == [0, None]
    policy.replace([1])
    found = policy.submit(Engine.pid, [(), ()], phase="pid").result()
    assert not set(found) & set(pids)
    assert policy.submit(Engine.sleep, [(0.0,)], phase="generate", only=[1]).result() == [1]


def test_a_replica_lost_with_two_batches_under_way_is_replaced_once(eight_gpus: None) -> None:
    """The second batch hears of it at once, and its share too is drawn by the one that took the place."""
    values = {"rollout": {"workers": 2, "cpus": 1}, "deadlines": {"call_s": 20}}
    workers = RayFleet(PlacementConfig.model_validate(values)).start("rollout", SlowEcho, [0, 1])
    renewed: list[float] = []
    group = RolloutGroup(workers, max_restarts=1)
    group.renew = lambda: renewed.append(time.monotonic())
    prompts = TokenizedPrompts(Ragged.from_list([[i] for i in range(4)]), np.arange(4))
    try:
        pids, started = workers.process_ids(), time.monotonic()
        one, two = (group.submit(prompts, SamplingConfig(), num_per_prompt=1, seed=seed) for seed in (1, 2))
        os.kill(pids[0], signal.SIGKILL)
        for pending in (one, two):
            assert group.fetch(pending.result()).sequences.prompt_ids.tolist() == [0, 1, 2, 3]
        assert len(renewed) == 1 and renewed[0] - started > 2 * SlowEcho.takes_s  # when the other had drawn for both
        after = workers.process_ids()
        assert after[0] != pids[0] and after[1] == pids[1] and not group.under_way
    finally:
        workers.close()


def test_a_failure_that_is_owed_to_a_dead_worker_is_told_so(eight_gpus: None) -> None:
    """A rank whose peer in another group has died fails first, with an error of its own."""
    values = {"policy": {"cpus": 1}, "reward": {"cpus": 1}, "deadlines": {"call_s": 20}}
    fleet = RayFleet(PlacementConfig.model_validate(values))
    policy, reward = start(fleet, "policy"), start(fleet, "reward")
    try:
        (pid,) = reward.submit(Engine.pid, [()], phase="pid").result()
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerLost, match=r"^reward-0 died \(policy-0: score: ValueError: the flux capacitor is emp"):
            policy.submit(Engine.fail, [()], phase="score").result()
    finally:
        policy.close()
        reward.close()


def test_a_late_worker_leaves_its_stacks(eight_gpus: None, tmp_path: Path) -> None:
    """Those of the worker, and of who waited for it; a call in time leaves none."""
    values = {"policy": {"workers": 2, "cpus": 1}, "deadlines": {"call_s": 2}}
    policy = start(RayFleet(PlacementConfig.model_validate(values), stacks=str(tmp_path)), "policy")
    try:
        policy.submit(Engine.sleep, [(0.0,), (0.0,)], phase="score").result()
        assert not list(tmp_path.iterdir())
        with pytest.raises(WorkerLost, match=f"no answer within 2 s .*; what it did is in {tmp_path}"):
            policy.submit(Engine.sleep, [(0.0,), (30.0,)], phase="score").result()
        assert "in sleep" in (tmp_path / "policy-1.txt").read_text()
        assert "in result" in (tmp_path / "controller.txt").read_text()
    finally:
        policy.close()


def _actors() -> list[dict[str, Any]]:
    from ray.util.state import list_actors

    try:
        return [dict(actor) for actor in list_actors()]
    except Exception:  # noqa: BLE001 - without a dashboard the state service is not there
        from ray._private.state import actors

        return [{"state": a["State"]} for a in actors().values()]
