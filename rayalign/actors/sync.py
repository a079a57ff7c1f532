"""The rollout group as the weight sender sees it: vLLM's four calls, fanned out to all replicas, with a deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayalign.actors import worker as shell
from rayalign.actors.deadline import fetch
from rayalign.ports import RolloutWorker


class ReplicaClient:
    """Drives vLLM's weight-sync protocol on all replicas; lives on the policy group's rank 0.

    `version` is the policy version that the next `finish_weight_update` stamps on the samples.
    """

    def __init__(self, actors: list[Any], *, workers_each: int, deadline_s: float) -> None:
        self._actors = actors
        self._workers_each = workers_each
        self._deadline_s = deadline_s
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Each replica's vLLM workers take the ranks behind those of the replica before it."""
        offset = init_info.get("rank_offset")
        infos = [
            init_info if offset is None else {**init_info, "rank_offset": offset + i * self._workers_each}
            for i in range(len(self._actors))
        ]
        self._call(_init, [(info,) for info in infos], "joining the transfer group")

    def start_weight_update(self) -> None:
        """Opens a sync."""
        self._call(_start, [()] * len(self._actors), "opening a sync")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives weights, while the sender is sending."""
        self._call(_update, [(update_info,)] * len(self._actors), "receiving weights")

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Closes a sync."""
        self._call(_finish, [(self.version,)] * len(self._actors), "closing a sync")

    def _call(self, method: Callable[..., None], arguments: list[tuple[Any, ...]], what: str) -> None:
        refs = [
            actor.apply.remote(shell.call, method=method, arguments=a)
            for actor, a in zip(self._actors, arguments, strict=True)
        ]
        fetch(refs, deadline_s=self._deadline_s, what=f"rollout: {what} (policy v{self.version})")


class LocalClient:
    """The same for a sampler in this process."""

    def __init__(self, sampler: RolloutWorker) -> None:
        self._sampler = sampler
        self.version = 0

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Nothing to join."""

    def start_weight_update(self) -> None:
        """Opens a sync."""
        self._sampler.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Loads weights by reference."""
        self._sampler.update_weights(update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Closes a sync."""
        self._sampler.finish_weight_update(self.version)


def _init(sampler: RolloutWorker, init_info: dict[str, Any]) -> None:
    sampler.init_weight_transfer_engine(init_info)


def _start(sampler: RolloutWorker) -> None:
    sampler.start_weight_update()


def _update(sampler: RolloutWorker, update_info: dict[str, Any]) -> None:
    sampler.update_weights(update_info)


def _finish(sampler: RolloutWorker, version: int) -> None:
    sampler.finish_weight_update(version)
