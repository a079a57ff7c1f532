"""Offline stages run to their end on Ray Train: every rank runs one function, rank 0 reports as it goes."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray import PlacementGroupID
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayalign.actors.deadline import failure, fetch, has_crashed, is_ready
from rayalign.actors.plan import GroupPlan
from rayalign.actors.ray_workers import worker_environment
from rayalign.actors.stacks import dump_stacks, stacks_if_late
from rayalign.config.placement import DeadlineConfig
from rayalign.errors import CallFailed, WorkerLost

POLL_S = 0.2
DRAIN_S = 60.0  # for the queue's actor, which does nothing but this
END_S = 5.0  # for a process that is killed
WHAT = "offline training"


@dataclass(frozen=True)
class _Started:
    """What a rank says first: which actor it is."""

    actor: Any


@dataclass(frozen=True)
class _Duty:
    """What a rank is started with."""

    loop: Callable[[Any, Callable[[Any], None]], None]
    setup: Any
    reports: Any
    deadlines: DeadlineConfig
    stacks: str | None


def run_ray_train(
    loop: Callable[[Any, Callable[[Any], None]], None],
    setup: Any,
    plan: GroupPlan,
    deadlines: DeadlineConfig,
    stacks: str | None,
    on_report: Callable[[Any], None],
) -> None:
    """Runs `loop(setup, report)` on each of `plan`'s workers with TorchTrainer; reports arrive here while it runs.

    Raises what a worker raised, as `failure` puts it. Where nothing is heard for a deadline, `start_s` before the first
    report and `call_s` between reports, its ranks are ended, and WorkerLost is raised; CallFailed where none had started.
    What ranks and this process did then lies in the folder `stacks`, where one is given.
    """
    from ray.util.queue import Queue

    reports = Queue(actor_options={"num_cpus": 0})
    duty = _Duty(loop, setup, reports, deadlines, stacks)
    ranks: list[Any] = []
    reserved = _reserved()
    try:
        with tempfile.TemporaryDirectory(prefix="rayalign-train-", ignore_cleanup_errors=True) as storage:
            # On this node, where `storage` is. Not in a thread: one that still waits in Ray for what never comes crashes
            # this process when Ray ends.
            fitting = _fit.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False),
                runtime_env={"env_vars": {k: v for k, v in os.environ.items() if k.startswith("RAY_TRAIN_")}},
            ).remote(_trainer(duty, plan, storage))
            try:
                _listen(fitting, duty, ranks, on_report)
                (error,) = fetch([fitting], deadline_s=DRAIN_S, what=WHAT)
            except BaseException:
                with contextlib.suppress(RayError):  # what went wrong before is what is told
                    _end(fitting, ranks, reserved)
                raise
    finally:
        reports.shutdown()
    if error is not None:
        raise _failed(error, ranks)


def _end(fitting: Any, ranks: list[Any], reserved: set[str]) -> None:
    """Ends ranks and Ray Train, and gives back what this job has reserved, or waits for, since `reserved`.

    Ray Train's own cleaner knows its placement group only once the ranks have started, and asks a dashboard; left alone it
    would take its room when there is some, from a next start.
    """
    for rank in ranks:
        ray.kill(rank)
    ray.cancel(fitting, force=True)  # with its process Ray Train's controller ends, and with that all ranks
    until = time.monotonic() + END_S
    while not is_ready(fitting, POLL_S) and time.monotonic() < until:
        pass
    until = time.monotonic() + 5 * POLL_S
    while time.monotonic() < until:  # the controller's end, and so its last reservation, comes a moment later
        for group in _reserved() - reserved:
            remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))
        time.sleep(POLL_S)


def _reserved() -> set[str]:
    """The placement groups of this job that stand, or wait for room."""
    job = ray.get_runtime_context().get_job_id()  # a group's own id ends with it
    table = ray.util.placement_group_table()
    return {group for group, entry in table.items() if group.endswith(job) and entry["state"] != "REMOVED"}


def _trainer(duty: _Duty, plan: GroupPlan, storage: str) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _rank,
        train_loop_config={"duty": duty},
        torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=bool(plan.gpus),
            resources_per_worker={"CPU": plan.cpus} | ({"GPU": 1.0} if plan.gpus else {}),
        ),
        run_config=RunConfig(storage_path=storage, worker_runtime_env={"env_vars": worker_environment(plan)}),
    )


def _listen(fitting: Any, duty: _Duty, ranks: list[Any], on_report: Callable[[Any], None]) -> None:
    """Passes reports on until training ends, or until nothing was heard for too long; adds to `ranks` who has started."""
    limit_s, heard_at = duty.deadlines.start_s, time.monotonic()
    while not is_ready(fitting, POLL_S):
        if _drain(duty.reports, ranks, on_report):
            limit_s, heard_at = duty.deadlines.call_s, time.monotonic()
        if time.monotonic() - heard_at <= limit_s:
            continue
        late = f"nothing heard from Ray Train for {limit_s:g} s (placement.deadlines)"
        if not ranks:
            raise CallFailed(f"{WHAT}: {late}; are its resources free?")
        where = ""
        if duty.stacks:
            dump_stacks(Path(duty.stacks), "controller")
            where = f"; what its ranks did is in {duty.stacks}, unless a process was stopped"
        raise WorkerLost(f"{WHAT}: {late}{where}")
    _drain(duty.reports, ranks, on_report)


def _rank(arguments: dict[str, Any]) -> None:
    import torch
    from ray import train

    duty: _Duty = arguments["duty"]
    context = train.get_context()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ["LOCAL_SIZE"] = str(context.get_local_world_size())  # DeepSpeed asks for it on CPU
    # Where the caller has given up there is nobody to report to, and a rank that starts late ends here.
    started = _Started(ray.get_runtime_context().current_actor)
    fetch([duty.reports.actor.put.remote(started)], deadline_s=DRAIN_S, what=f"{WHAT}: the run that asked for it")
    rank = context.get_world_rank()
    watch: contextlib.AbstractContextManager[Callable[[float], None]] = contextlib.nullcontext(lambda deadline_s: None)
    if duty.stacks:
        watch = stacks_if_late(duty.stacks, f"rank-{rank}", duty.deadlines.start_s)
    with watch as begin:

        def report(value: Any) -> None:
            begin(duty.deadlines.call_s)
            if rank == 0:
                duty.reports.put(value)

        duty.loop(duty.setup, report)


@ray.remote(num_cpus=0, max_retries=0, max_calls=1)
def _fit(trainer: Any) -> Exception | None:
    """What training failed with. In a process of its own: Ray Train keeps state there, and answers the signals that come."""
    try:
        trainer.fit()
    except Exception as error:  # noqa: BLE001 - told apart where it is waited for
        return error
    return None


def _drain(reports: Any, ranks: list[Any], on_report: Callable[[Any], None]) -> bool:
    """Passes on what is waiting, and adds ranks that have started; whether there was any report."""
    what = f"{WHAT}: reports of Ray Train"
    (size,) = fetch([reports.actor.qsize.remote()], deadline_s=DRAIN_S, what=what)
    if not size:
        return False
    (values,) = fetch([reports.actor.get_nowait_batch.remote(size)], deadline_s=DRAIN_S, what=what)
    ranks += [value.actor for value in values if isinstance(value, _Started)]
    told = [value for value in values if not isinstance(value, _Started)]
    for value in told:
        on_report(value)
    return bool(told)


def _failed(error: BaseException, ranks: list[Any]) -> BaseException:
    """What a failed training means. Where a rank has died the others fail for want of it, and may say so first."""
    worker_errors = getattr(error, "worker_failures", None) or {}
    told = [failure(worker_error, WHAT) for worker_error in worker_errors.values()] or [failure(error, WHAT)]
    first = next((one for one in told if isinstance(one, WorkerLost)), told[0])
    if type(first) is CallFailed and any(has_crashed(rank) for rank in ranks):
        return WorkerLost(f"{WHAT}: a worker died, and another one tells: {first}")
    return first
