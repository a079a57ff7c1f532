"""Where groups come from: Ray actors in placement groups, or plain objects in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, remove_placement_group

from rayalign.actors.cluster import cluster_nodes, connect
from rayalign.actors.local_workers import LocalWorkers
from rayalign.actors.plan import GroupPlan, Plan, check_fits, make_plan
from rayalign.actors.ray_workers import RayWorkers, reserve
from rayalign.actors.sync import LocalClient, ReplicaClient
from rayalign.actors.train import run_ray_train
from rayalign.config.placement import PlacementConfig
from rayalign.ports import PolicyWorker, TransferSetup

# What a process knows of the devices it may use and of its place among ranks: ours while a fleet is in it.
ENVIRONMENT = ("CUDA_VISIBLE_DEVICES", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")


class RayFleet:
    """Starts groups on a Ray cluster, each in a placement group of its own, or all in one when colocated.

    Raises PlacementError before any actor starts when the cluster has no room for all three.
    """

    def __init__(
        self,
        placement: PlacementConfig,
        *,
        max_staleness: int = 0,
        actor_logs: bool = False,
        stacks: str | None = None,
        run: str = "",
        metrics_port: int | None = None,
    ) -> None:
        self._placement, self._stacks, self._run = placement, stacks, run
        self._groups: list[RayWorkers] = []
        self._shared: PlacementGroup | None = None
        self._started_ray = False
        self.plan = make_plan(placement, max_staleness=max_staleness)
        self._started_ray = connect(placement, actor_logs, metrics_port)
        try:
            check_fits(self.plan, cluster_nodes())
        except BaseException:
            self.close()
            raise

    def num_workers(self, role: str) -> int:
        """How many workers a group has."""
        return self.plan.groups[role].num_workers

    def threads(self, role: str) -> int:
        """Threads of each."""
        return self.plan.groups[role].threads

    @property
    def weight_transfer(self) -> str:
        """vLLM's transfer backend of this placement."""
        return self.plan.weight_sync

    def start(self, role: str, factory: Callable[[Any], Any], setups: Sequence[Any]) -> RayWorkers:
        """Places a group's actors and builds worker i from setups[i]; all build at the same time."""
        if self.plan.colocated and self._shared is None:
            self._shared = _shared_bundles(self.plan, self._placement)
        workers = RayWorkers(
            self.plan.groups[role],
            self._placement.deadlines,
            bundles=self._shared,
            lost=self._lost,
            stacks=self._stacks,
            run=self._run,
        )
        self._groups = [group for group in self._groups if not group.closed] + [workers]
        try:
            if role != "rollout":
                workers.join_ranks()
            workers.build(factory, [(setup,) for setup in setups]).result()
        except BaseException:
            workers.close()
            raise
        return workers

    def connect(self, policy: RayWorkers, rollout: RayWorkers) -> None:
        """All replicas and the policy's rank 0 join one transfer group."""
        address, port = policy.free_address()
        each = self._placement.rollout.tensor_parallel
        deadline_s = self._placement.deadlines.sync_s
        client = ReplicaClient(rollout.actors, workers_each=each, deadline_s=deadline_s)
        transfer = TransferSetup(self.plan.weight_sync, address, port, len(rollout) * each, deadline_s)
        policy.submit(_connect_sender, [(client, transfer)] * len(policy), phase="sync: joining").result()

    def run_ranks(self, loop: Callable[..., None], setup: Any, on_report: Callable[[Any], None]) -> None:
        """Runs `loop` on every rank with Ray Train's TorchTrainer, on GPUs that no group holds meanwhile."""
        self._free_shared()
        deadlines = self._placement.deadlines
        run_ray_train(loop, setup, self.plan.groups["policy"], deadlines, self._stacks, on_report)

    def _lost(self) -> list[str]:
        """The dead workers of all groups that are open."""
        return [name for group in self._groups if not group.closed for name in group.lost()]

    def close(self) -> None:
        """Gives back what was reserved, and ends a Ray that was started here."""
        self._free_shared()
        if self._started_ray:
            ray.shutdown()

    def _free_shared(self) -> None:
        if self._shared is not None:
            remove_placement_group(self._shared)
            self._shared = None


class LocalFleet:
    """One worker a group (the config allows no more), as objects in this process. Nothing here needs Ray."""

    def __init__(self, placement: PlacementConfig) -> None:
        self.plan = make_plan(placement)
        self._given = {name: os.environ.get(name) for name in ENVIRONMENT}
        if not placement.policy.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engines take a GPU wherever they see one

    @property
    def weight_transfer(self) -> str:
        """Tensors pass by reference."""
        return "local"

    def num_workers(self, role: str) -> int:
        """One."""
        return 1

    def threads(self, role: str) -> int:
        """All groups are this process: the most that one asks for."""
        return max(group.threads for group in self.plan.groups.values())

    def start(self, role: str, factory: Callable[[Any], Any], setups: Sequence[Any]) -> LocalWorkers:
        """Builds the worker here."""
        import torch

        torch.set_num_threads(self.threads(role))
        workers = LocalWorkers(role)
        workers.build(factory, [(setups[0],)])
        return workers

    def connect(self, policy: LocalWorkers, rollout: LocalWorkers) -> None:
        """The sampler takes weights by reference."""
        transfer = TransferSetup("local", "", 0, 1, 0.0)
        _connect_sender(policy.engine, LocalClient(rollout.engine), transfer)

    def run_ranks(self, loop: Callable[..., None], setup: Any, on_report: Callable[[Any], None]) -> None:
        """Runs `loop` here."""
        import torch

        torch.set_num_threads(self.threads("policy"))
        loop(setup, on_report)

    def close(self) -> None:
        """Gives this process its devices back, and its place among ranks: other libraries read both."""
        for name, value in self._given.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _connect_sender(policy: PolicyWorker, client: Any, transfer: TransferSetup) -> None:
    policy.connect(client, transfer)


def _shared_bundles(plan: Plan, placement: PlacementConfig) -> Any:
    """One placement group whose bundle i holds worker i of every group: a whole GPU and all their cores."""
    widest = max(group.num_workers for group in plan.groups.values())
    shared = GroupPlan(
        "all groups",
        widest,
        cpus=sum(group.cpus for group in plan.groups.values()),
        gpus=1.0,
        threads=1,
    )
    return reserve(shared, placement.deadlines)
