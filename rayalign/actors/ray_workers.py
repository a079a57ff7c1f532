"""The workers of one group as Ray actors in a placement group of their own."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayalign.actors import worker as shell
from rayalign.actors.deadline import failure, fetch, is_dead
from rayalign.actors.metrics import BusySeconds
from rayalign.actors.plan import GroupPlan
from rayalign.actors.stacks import dump_stacks
from rayalign.actors.worker import EngineWorker, Reply
from rayalign.config.placement import DeadlineConfig
from rayalign.errors import Diverged, PlacementError, RayalignError, UserError, WorkerLost
from rayalign.types import Stored

R = TypeVar("R")
DEATH_HEARD_S = 3.0  # for Ray to hear that a process has ended


class RayWorkers:
    """Starts a group's actors, and calls their engines; every call ends by its deadline.

    Args:
        plan: how many, and with what.
        bundles: the placement group to use, for colocation; one is made (and removed) if None.
        lost: names of the dead workers of all groups of the run, that a failure here may be owed to; this group's if None.
        stacks: a folder for what workers were doing when a call passed its deadline.
        run: the run's name, in what Ray exports of its workers.
    """

    def __init__(
        self,
        plan: GroupPlan,
        deadlines: DeadlineConfig,
        *,
        bundles: PlacementGroup | None = None,
        lost: Callable[[], list[str]] | None = None,
        stacks: str | None = None,
        run: str = "",
    ) -> None:
        self.role = plan.role
        self._plan, self._deadlines = plan, deadlines
        self._owned = bundles is None
        self._tags = itertools.count()
        self.busy_s, self._busy_each = 0.0, BusySeconds(run, plan.role)
        self.closed = False
        self._find_lost, self._stacks = lost or self.lost, stacks
        self._built: tuple[Callable[..., Any], Sequence[tuple[Any, ...]]] | None = None
        self._bundles = bundles or reserve(plan, deadlines)
        try:
            self.actors = [self._start(index) for index in range(plan.num_workers)]
        except BaseException:
            self._give_back()
            raise
        # The manager logs whole remote tracebacks; what a person needs of them is in the error that is raised.
        logging.getLogger(FaultTolerantActorManager.__module__).setLevel(logging.CRITICAL)
        self._manager = FaultTolerantActorManager(self.actors, max_remote_requests_in_flight_per_actor=16)
        self._ids = list(range(plan.num_workers))  # the manager's, of each worker

    def __len__(self) -> int:
        return self._plan.num_workers

    def join_ranks(self) -> None:
        """Tells each actor its rank and where rank 0 waits for the others."""
        host, port = self._apply(shell.free_address, [{}], phase="start", actors=[0])[0]
        self._apply(
            shell.set_environment,
            [
                {
                    "environment": {
                        "RANK": str(rank),
                        "WORLD_SIZE": str(len(self)),
                        "LOCAL_RANK": "0",  # Ray shows each actor its own devices only
                        "LOCAL_SIZE": "1",
                        "MASTER_ADDR": host,
                        "MASTER_PORT": str(port),
                    }
                }
                for rank in range(len(self))
            ],
            phase="start",
        )

    def free_address(self) -> tuple[str, int]:
        """A host and port on worker 0's node."""
        return self._apply(shell.free_address, [{}], phase="start", actors=[0])[0]

    def devices(self) -> list[tuple[str, tuple[str, ...]]]:
        """(node id, GPU ids) of each worker."""
        return self._apply(shell.devices, [{}] * len(self), phase="start")

    def process_ids(self) -> list[int]:
        """Of each worker, on its node."""
        return self._apply(shell.process_id, [{}] * len(self), phase="start")

    def build(self, factory: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> _Calls[None]:
        """Starts making each worker's engine with `factory(*arguments[i])`."""
        self._built = factory, arguments
        kwargs = [{"factory": factory, "arguments": a} for a in arguments]
        return self._submit(shell.build, kwargs, phase="start", deadline_s=self._deadlines.start_s)

    def submit(
        self,
        method: Callable[..., R],
        arguments: Sequence[tuple[Any, ...]],
        *,
        phase: str,
        only: Sequence[int] | None = None,
    ) -> _Calls[R]:
        """Calls `method(engine, *arguments[i])` on worker i; fewer arguments than workers call the first ones.

        `only` names the workers that the arguments are for, in its order.
        """
        deadline_s = self._deadlines.sync_s if phase.startswith("sync") else self._deadlines.call_s
        stacks = (self._stacks, deadline_s) if self._stacks else None
        kwargs = [{"method": method, "arguments": a, "stacks": stacks} for a in arguments]
        actors = list(only) if only is not None else None
        return self._submit(shell.call, kwargs, phase=phase, deadline_s=deadline_s, actors=actors)

    def lost(self) -> list[str]:
        """Names of the workers of this group that are dead."""
        return [f"{self.role}-{i}" for i, actor in enumerate(self.actors) if is_dead(actor)]

    def replace(self, workers: Sequence[int]) -> None:
        """Ends workers, dead or hung, and builds new ones in their places, from what they were built from."""
        assert self._built is not None
        for index in workers:
            ray.kill(self.actors[index])
            self._manager.remove_actor(self._ids[index])
            self.actors[index] = self._start(index)
            before = set(self._manager.actor_ids())
            self._manager.add_actors([self.actors[index]])
            (self._ids[index],) = set(self._manager.actor_ids()) - before
        factory, arguments = self._built
        kwargs = [{"factory": factory, "arguments": arguments[i]} for i in workers]
        started = self._submit(
            shell.build, kwargs, phase="start", deadline_s=self._deadlines.start_s, actors=list(workers)
        )
        started.result()

    def fetch(self, stored: Stored[R]) -> R:
        """Brings a stored value here."""
        return fetch([stored.ref], deadline_s=self._deadlines.call_s, what=f"{self.role}: fetching a result")[0]

    def close(self) -> None:
        """Ends the actors and gives their resources back."""
        self.closed = True
        for actor in self.actors:
            ray.kill(actor)
        self._give_back()

    def _give_back(self) -> None:
        if self._owned:
            remove_placement_group(self._bundles)

    def _start(self, index: int) -> Any:
        name = f"{self.role}-{index}"
        options = {
            "num_cpus": self._plan.cpus,
            "num_gpus": self._plan.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(self._bundles, placement_group_bundle_index=index),
            # Threads equal the worker's cores; without it torch takes every core of the node.
            "runtime_env": {"env_vars": worker_environment(self._plan)},
            "max_concurrency": 1,
        }
        return ray.remote(EngineWorker).options(**options).remote(name)

    def _apply(
        self, func: Callable[..., Reply], kwargs: list[dict[str, Any]], *, phase: str, actors: list[int] | None = None
    ) -> list[Any]:
        return self._submit(func, kwargs, phase=phase, deadline_s=self._deadlines.start_s, actors=actors).result()

    def _submit(
        self,
        func: Callable[..., Reply],
        kwargs: list[dict[str, Any]],
        *,
        phase: str,
        deadline_s: float,
        actors: list[int] | None = None,
    ) -> _Calls[Any]:
        workers = actors if actors is not None else list(range(len(kwargs)))
        ids = [self._ids[i] for i in workers]
        tag = f"{phase} #{next(self._tags)}"
        submitted = self._manager.foreach_actor_async([func] * len(ids), tag=tag, kwargs=kwargs, remote_actor_ids=ids)
        if submitted < len(ids):
            raise WorkerLost(f"{self.role}: {len(ids) - submitted} worker(s) are out of service at phase {phase}")
        return _Calls(self, tag, phase, dict(zip(ids, workers, strict=True)), time.monotonic() + deadline_s, deadline_s)

    def _count_busy(self, seconds: Mapping[int, float]) -> None:
        """Of one call of each worker."""
        self.busy_s += sum(seconds.values()) / len(seconds)
        for worker, busy_s in seconds.items():
            self._busy_each.add(worker, busy_s)

    def _told(self, error: RayalignError) -> RayalignError:
        """An error, or what it is owed to: where a worker has died, others fail for want of it, and say so first."""
        if isinstance(error, (UserError, WorkerLost)):
            return error
        end = time.monotonic() + DEATH_HEARD_S
        while not (dead := self._find_lost()) and time.monotonic() < end:
            time.sleep(0.1)
        return WorkerLost(f"{' and '.join(dead)} died ({error})") if dead else error


class _Calls(Generic[R]):
    """Calls under way; `result` waits for all of them, until the deadline. `ids` maps the manager's ids to workers."""

    def __init__(
        self, workers: RayWorkers, tag: str, phase: str, ids: dict[int, int], due: float, deadline_s: float
    ) -> None:
        self._workers, self._tag, self._phase, self._ids = workers, tag, phase, ids
        self._due, self._deadline_s = due, deadline_s
        self._replies: dict[int, Reply] = {}  # by worker

    def result(self) -> list[R]:
        """One value a worker, in order. Raises CallFailed, naming actor and phase; WorkerLost for one dead or late.

        Diverged is raised when all have said so: they hold good weights, are still in service, and save next.
        """
        diverged: dict[int, Diverged] = {}
        while len(self._replies) + len(diverged) < len(self._ids):
            # One that failed is heard at once, not after the others have run into their deadline.
            for worker, error in self._hear():
                if not isinstance(error, Diverged):
                    raise self._workers._told(error)
                diverged[worker] = error
            waited_for = [w for w in self._ids.values() if w not in self._replies and w not in diverged]
            if gone := [worker for worker in waited_for if self._is_replaced(worker)]:
                raise WorkerLost(f"{self._name(gone[0])}: another worker has taken its place")
            if waited_for and time.monotonic() >= self._due:
                raise self._late(waited_for[0])
        if diverged:
            raise next(iter(diverged.values()))
        self._workers._count_busy({worker: reply.busy_s for worker, reply in self._replies.items()})
        return [self._replies[w].value for w in self._ids.values()]

    def survivors(self) -> list[R | None]:
        """After WorkerLost: waits for those that live; one value a worker, None where it died, hangs or failed."""
        gone: set[int] = set()
        while waited_for := [w for w in self._ids.values() if w not in self._replies and w not in gone]:
            gone |= {worker for worker, _ in self._hear()}
            gone |= {w for w in waited_for if self._is_replaced(w) or is_dead(self._workers.actors[w])}
            if time.monotonic() >= self._due:
                break
        return [self._replies[w].value if w in self._replies else None for w in self._ids.values()]

    def _is_replaced(self, worker: int) -> bool:
        """Whether the process that was called is gone, and its answer will not be passed on."""
        return self._workers._ids[worker] not in self._ids

    def _hear(self) -> list[tuple[int, RayalignError]]:
        """Takes in the answers that have come; (worker, error) of those that failed."""
        failed = []
        left = self._due - time.monotonic()
        manager = self._workers._manager
        for found in manager.fetch_ready_async_reqs(tags=[self._tag], timeout_seconds=max(0.0, min(left, 0.02))):
            worker = self._ids[found.actor_id]
            if found.ok:
                self._replies[worker] = found.get()
                continue
            error = failure(found.get(), self._name(worker))
            if isinstance(error, Diverged):
                manager.set_actor_state(found.actor_id, healthy=True)
            failed.append((worker, error))
        return failed

    def _late(self, worker: int) -> WorkerLost:
        where = ""
        if self._workers._stacks:
            dump_stacks(Path(self._workers._stacks), "controller")
            where = f"; what it did is in {self._workers._stacks}, unless the process was stopped"
        return WorkerLost(
            f"{self._name(worker)}: no answer within {self._deadline_s:g} s (placement.deadlines){where}"
        )

    def _name(self, worker: int) -> str:
        return f"{self._workers.role}-{worker}: {self._phase}"


def reserve(plan: GroupPlan, deadlines: DeadlineConfig) -> PlacementGroup:
    """A placement group with one bundle a worker. Raises PlacementError if others hold the room past the deadline."""
    group = placement_group([plan.bundle] * plan.num_workers, strategy="PACK")
    try:
        if not group.wait(deadlines.start_s):
            raise PlacementError(_still_busy(plan, deadlines))
    except BaseException:
        remove_placement_group(group)
        raise
    return group


def _still_busy(plan: GroupPlan, deadlines: DeadlineConfig) -> str:
    free, there = ray.available_resources(), ray.cluster_resources()
    room = ", ".join(f"{free.get(kind, 0.0):g} of {there.get(kind, 0.0):g} {kind}" for kind in plan.bundle)
    return (
        f"placement of {plan.role}: no room for {plan.num_workers} bundle(s) of {plan.bundle} within "
        f"{deadlines.start_s:g} s; free are {room}: other work holds the rest. Wait for it, ask for less, or raise "
        "placement.deadlines.start_s"
    )


def worker_environment(plan: GroupPlan) -> dict[str, str]:
    """Environment of a worker: the threads and the devices of its plan, no more."""
    # Ray leaves every GPU visible to a worker that asked for none, and engines take a GPU wherever they see one.
    hidden = {} if plan.gpus else {"CUDA_VISIBLE_DEVICES": ""}
    return hidden | {
        "OMP_NUM_THREADS": str(plan.threads),
        "MKL_NUM_THREADS": str(plan.threads),
        "MALLOC_ARENA_MAX": "2",  # threads come and go, and each arena keeps what was freed in it
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # else each vLLM tells of its NUMA node
    }
