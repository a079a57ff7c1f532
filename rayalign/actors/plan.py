"""The placement plan: a pure function from a config and the nodes' resources to who gets what, or to a sentence.

Nothing here talks to Ray, so a plan is made, shown and tested before any actor starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayalign.config.placement import GroupPlacement, PlacementConfig
from rayalign.errors import PlacementError

ROLES = ("policy", "reward", "rollout")
SLACK = 1e-6


@dataclass(frozen=True)
class GroupPlan:
    """One group: `num_workers` bundles of `cpus` and `gpus`, each worker with `threads` threads."""

    role: str
    num_workers: int
    cpus: float  # Ray's accounting; a share of a core where groups take turns on it
    gpus: float
    threads: int

    @property
    def bundle(self) -> dict[str, float]:
        """What one worker reserves."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True)
class Plan:
    """The three groups. With `colocated`, worker i of each group shares one bundle of whole GPUs."""

    groups: dict[str, GroupPlan]
    colocated: bool
    weight_sync: str  # nccl, ipc or gloo

    def sentence(self) -> str:
        """The plan in words, for `rayalign doctor` and the start of a run."""
        parts = [
            f"{g.role}: {g.num_workers} worker{'s' if g.num_workers > 1 else ''} with "
            + (f"{g.gpus:g} GPU{'s' if g.gpus > 1 else ''} and " if g.gpus else "")
            + f"{g.threads} thread{'s' if g.threads > 1 else ''} each"
            for g in self.groups.values()
        ]
        return "; ".join(parts) + f"; weights travel by {self.weight_sync}"


def make_plan(placement: PlacementConfig, *, max_staleness: int = 0) -> Plan:
    """What a config asks for. Groups that take turns share cores unless told otherwise."""
    on_gpu = any(group.gpus for group in (placement.policy, placement.reward, placement.rollout))
    share = placement.share_cores if placement.share_cores is not None else not on_gpu and max_staleness == 0
    turns = len(ROLES) if share else 1
    gpu_share = 1 / len(ROLES) if placement.colocate else 1.0
    per_replica = placement.rollout.tensor_parallel
    groups = {
        "policy": _group("policy", placement.policy, 1, turns, gpu_share),
        "reward": _group("reward", placement.reward, 1, turns, gpu_share),
        "rollout": _group("rollout", placement.rollout, per_replica, turns, gpu_share),
    }
    return Plan(groups, placement.colocate, _weight_sync(placement, on_gpu))


def check_fits(plan: Plan, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raises PlacementError naming the first bundle for which no node has room. Nodes are {CPU, GPU} totals."""
    free = [{"CPU": node.get("CPU", 0.0), "GPU": node.get("GPU", 0.0)} for node in nodes]
    # The largest bundles first: they have the fewest places to go.
    for group in sorted(plan.groups.values(), key=lambda g: (-g.gpus, -g.cpus)):
        for index in range(group.num_workers):
            if not _take(free, group.bundle):
                raise PlacementError(_shortage(group, index, plan, free, nodes))


def _group(role: str, config: GroupPlacement, gpus_each: int, turns: int, gpu_share: float) -> GroupPlan:
    if config.gpus and config.workers not in (None, config.gpus // gpus_each):
        raise PlacementError(
            f"placement.{role}: {config.gpus} GPUs make {config.gpus // gpus_each} workers, not {config.workers}; "
            "leave workers unset"
        )
    num_workers = config.gpus // gpus_each if config.gpus else config.workers or 1
    gpus = gpus_each * gpu_share if config.gpus else 0.0
    return GroupPlan(role, num_workers, config.cpus / turns, gpus, config.cpus)


def _weight_sync(placement: PlacementConfig, on_gpu: bool) -> str:
    if placement.weight_sync != "auto":
        return placement.weight_sync
    if not on_gpu:
        return "gloo"
    return "ipc" if placement.colocate else "nccl"


def _take(free: list[dict[str, float]], bundle: Mapping[str, float]) -> bool:
    for node in free:
        if all(node.get(kind, 0.0) + SLACK >= amount for kind, amount in bundle.items()):
            for kind, amount in bundle.items():
                node[kind] = max(0.0, node[kind] - amount)  # thirds of cores do not add up to whole ones exactly
            return True
    return False


def _shortage(
    group: GroupPlan,
    placed: int,
    plan: Plan,
    free: Sequence[Mapping[str, float]],
    nodes: Sequence[Mapping[str, float]],
) -> str:
    wanted = {
        kind: sum(g.num_workers * g.bundle.get(kind, 0.0) for g in plan.groups.values()) for kind in ("CPU", "GPU")
    }
    there = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    best = max(free, key=lambda node: (node["GPU"], node["CPU"]), default={"CPU": 0.0, "GPU": 0.0})
    return (
        f"placement.{group.role} needs {group.num_workers} bundle(s) of {_amounts(group.bundle)}, and number "
        f"{placed + 1} fits on no node (most room left on one: {_amounts(best)}); the three groups need "
        f"{_amounts(wanted)} in all, the cluster has {_amounts(there)} on {len(nodes)} node(s): "
        "lower placement.*.gpus, .cpus or .workers, or add nodes"
    )


def _amounts(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{round(amount, 2):g} {kind}" for kind, amount in resources.items() if amount or kind == "CPU")
