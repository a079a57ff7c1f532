"""The Ray shell around an engine: it builds one, calls it, and keeps large results in the object store."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from rayalign.actors.deadline import fetch
from rayalign.actors.stacks import stacks_if_late
from rayalign.actors.stored import keep, resolve

FETCH_DEADLINE_S = 300.0  # for tokens and scores that another worker made


@dataclass(frozen=True, slots=True)
class Reply:
    """What a call gave back, and the seconds the worker spent on it."""

    value: Any
    busy_s: float


class EngineWorker:
    """Hosts one engine. Which engine it is, is the business of the factory it is given."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.engine: Any = None

    def __repr__(self) -> str:
        return self._name  # Ray prints it before each line this worker logs

    def ping(self) -> str:
        """A health check."""
        return "pong"

    def apply(self, func: Callable[..., Any], **kwargs: Any) -> Any:
        """Calls `func(self, ...)`: the one door that RLlib's FaultTolerantActorManager knocks at."""
        return func(self, **kwargs)


def set_environment(worker: EngineWorker, environment: dict[str, str]) -> Reply:
    """Sets what must be there before torch and vLLM are imported: ranks, rendezvous, threads."""
    os.environ.update(environment)
    return Reply(None, 0.0)


def free_address(worker: EngineWorker) -> Reply:
    """(host, port) on this worker's node that other workers can reach."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return Reply((ray.util.get_node_ip_address(), probe.getsockname()[1]), 0.0)


def devices(worker: EngineWorker) -> Reply:
    """(node id, GPU ids) that Ray gave this worker."""
    context = ray.get_runtime_context()
    return Reply((context.get_node_id(), tuple(map(str, ray.get_gpu_ids()))), 0.0)


def process_id(worker: EngineWorker) -> Reply:
    """Of this worker, on its node."""
    return Reply(os.getpid(), 0.0)


def build(worker: EngineWorker, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> Reply:
    """Makes the engine."""
    started = time.perf_counter()
    _pin_threads()
    worker.engine = factory(*[resolve(a, _fetched) for a in arguments])
    return Reply(None, time.perf_counter() - started)


def call(
    worker: EngineWorker,
    method: Callable[..., Any],
    arguments: tuple[Any, ...],
    stacks: tuple[str, float] | None = None,
) -> Reply:
    """Calls a method of the engine; rollouts and scores stay in the object store, behind a reference.

    `stacks` is a folder for what this process does when that many seconds have nearly passed.
    """
    watched = stacks_if_late(stacks[0], repr(worker), stacks[1]) if stacks else contextlib.nullcontext()
    with watched:
        values = [resolve(a, _fetched) for a in arguments]
        started = time.perf_counter()
        result = method(worker.engine, *values)
        return Reply(keep(result, ray.put), time.perf_counter() - started)


def _pin_threads() -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))


def _fetched(refs: list[Any]) -> list[Any]:
    return fetch(refs, deadline_s=FETCH_DEADLINE_S, what="fetching stored values")
