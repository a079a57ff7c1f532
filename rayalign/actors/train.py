"""Offline stages run to their end on Ray Train: every rank runs one function, rank 0 reports as it goes."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable
from typing import Any

from rayalign.actors.deadline import failure
from rayalign.actors.plan import GroupPlan
from rayalign.actors.ray_workers import thread_environment

POLL_S = 0.2


def run_ray_train(
    loop: Callable[[Any, Callable[[Any], None]], None],
    setup: Any,
    plan: GroupPlan,
    on_report: Callable[[Any], None],
) -> None:
    """Runs `loop(setup, report)` on each of `plan`'s workers with TorchTrainer; reports arrive here while it runs.

    Raises what a worker raised, as `failure` puts it.
    """
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    reports = Queue(actor_options={"num_cpus": 0})
    outcome: list[BaseException | None] = []
    with tempfile.TemporaryDirectory(prefix="rayalign-train-") as storage:
        trainer = TorchTrainer(
            _rank,
            train_loop_config={"loop": loop, "setup": setup, "reports": reports},
            torch_config=TorchConfig(backend="nccl" if plan.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=plan.num_workers,
                use_gpu=bool(plan.gpus),
                resources_per_worker=plan.bundle,
            ),
            run_config=RunConfig(
                storage_path=storage, worker_runtime_env={"env_vars": thread_environment(plan.threads)}
            ),
        )
        fitting = threading.Thread(target=_fit, args=(trainer, outcome), daemon=True)
        fitting.start()
        while fitting.is_alive():
            fitting.join(POLL_S)
            _drain(reports, on_report)
        _drain(reports, on_report)
    reports.shutdown()
    if outcome[0] is not None:
        raise _failed(outcome[0])


def _rank(arguments: dict[str, Any]) -> None:
    import os

    import torch
    from ray import train

    context = train.get_context()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    os.environ["LOCAL_SIZE"] = str(context.get_local_world_size())  # DeepSpeed asks for it on CPU
    reports = arguments["reports"]

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


def _drain(reports: Any, on_report: Callable[[Any], None]) -> None:
    size = reports.qsize()
    if size:
        for value in reports.get_nowait_batch(size):
            on_report(value)


def _failed(error: BaseException) -> BaseException:
    worker_errors = getattr(error, "worker_failures", None) or {}
    for worker_error in worker_errors.values():
        return failure(worker_error, "sft")
    return failure(error, "sft")
