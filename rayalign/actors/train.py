"""Offline stages run to their end on Ray Train: every rank runs one function, rank 0 reports as it goes."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from rayalign.actors.deadline import failure, fetch
from rayalign.actors.plan import GroupPlan
from rayalign.actors.ray_workers import worker_environment
from rayalign.config.placement import DeadlineConfig
from rayalign.errors import CallFailed, WorkerLost

POLL_S = 0.2
DRAIN_S = 60.0  # for the queue's actor, which does nothing but this


def run_ray_train(
    loop: Callable[[Any, Callable[[Any], None]], None],
    setup: Any,
    plan: GroupPlan,
    deadlines: DeadlineConfig,
    on_report: Callable[[Any], None],
) -> None:
    """Runs `loop(setup, report)` on each of `plan`'s workers with TorchTrainer; reports arrive here while it runs.

    Raises what a worker raised, as `failure` puts it, and CallFailed when nothing is heard for a deadline: `start_s`
    before the first report, `call_s` between reports.
    """
    from ray.util.queue import Queue

    reports = Queue(actor_options={"num_cpus": 0})
    outcome: list[BaseException | None] = []
    try:
        with tempfile.TemporaryDirectory(prefix="rayalign-train-", ignore_cleanup_errors=True) as storage:
            trainer = _trainer(loop, setup, plan, reports, storage)
            fitting = threading.Thread(target=_fit, args=(trainer, outcome), daemon=True)
            fitting.start()
            _listen(fitting, reports, on_report, deadlines)
    finally:
        reports.shutdown()
    if outcome[0] is not None:
        raise _failed(outcome[0])


def _trainer(loop: Any, setup: Any, plan: GroupPlan, reports: Any, storage: str) -> Any:
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    return TorchTrainer(
        _rank,
        train_loop_config={"loop": loop, "setup": setup, "reports": reports},
        torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=plan.num_workers,
            use_gpu=bool(plan.gpus),
            resources_per_worker={"CPU": plan.cpus} | ({"GPU": 1.0} if plan.gpus else {}),
        ),
        run_config=RunConfig(storage_path=storage, worker_runtime_env={"env_vars": worker_environment(plan)}),
    )


def _listen(
    fitting: threading.Thread, reports: Any, on_report: Callable[[Any], None], deadlines: DeadlineConfig
) -> None:
    """Passes reports on until training ends, or until nothing was heard for too long."""
    limit_s, heard_at = deadlines.start_s, time.monotonic()
    while fitting.is_alive():
        fitting.join(POLL_S)
        if _drain(reports, on_report):
            limit_s, heard_at = deadlines.call_s, time.monotonic()
        if time.monotonic() - heard_at > limit_s:
            raise CallFailed(
                f"sft: nothing heard from Ray Train for {limit_s:g} s (placement.deadlines); are its resources free?"
            )
    _drain(reports, on_report)


def _rank(arguments: dict[str, Any]) -> None:
    import os

    import torch
    from ray import train

    context = train.get_context()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ["LOCAL_SIZE"] = str(context.get_local_world_size())  # DeepSpeed asks for it on CPU
    reports = arguments["reports"]
    # Where the caller has given up there is nobody to report to, and a rank that starts late ends here.
    fetch([reports.actor.qsize.remote()], deadline_s=DRAIN_S, what="sft: the run that asked for this training")

    def report(value: Any) -> None:
        if context.get_world_rank() == 0:
            reports.put(value)

    arguments["loop"](arguments["setup"], report)


def _fit(trainer: Any, outcome: list[BaseException | None]) -> None:
    try:
        trainer.fit()
    except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
        outcome.append(error)
    else:
        outcome.append(None)


def _drain(reports: Any, on_report: Callable[[Any], None]) -> bool:
    """Passes on what is waiting; whether there was anything."""
    (size,) = fetch([reports.actor.qsize.remote()], deadline_s=DRAIN_S, what="sft: reports of Ray Train")
    if size:
        (values,) = fetch(
            [reports.actor.get_nowait_batch.remote(size)], deadline_s=DRAIN_S, what="sft: reports of Ray Train"
        )
        for value in values:
            on_report(value)
    return bool(size)


def _failed(error: BaseException) -> BaseException:
    """What a failed training means. Where a rank has died the others fail for want of it, and may say so first."""
    worker_errors = getattr(error, "worker_failures", None) or {}
    told = [failure(worker_error, "sft") for worker_error in worker_errors.values()] or [failure(error, "sft")]
    return next((one for one in told if isinstance(one, WorkerLost)), told[0])
