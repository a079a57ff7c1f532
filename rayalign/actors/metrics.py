"""Metrics through Ray: gauges of a run's records and counters of its workers, which Ray's dashboard and Prometheus read.

Ray puts `ray_` before each name, and adds tags of its own (node, session). A gauge keeps its last value as long as the run
lives, also that of a stage that has ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

PREFIX = "rayalign_"
GROUPS = ("policy", "reward", "rollout")
OTHER = "controller"
BUSY = "worker_busy_s"


def gauge_name(metric: str) -> str:
    """Example: policy/kl_policy_to_ref is rayalign_policy_kl_policy_to_ref."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def group_of(metric: str) -> str:
    """The group that a metric tells of, by its name (policy/entropy, idle_frac/rollout); else the controller."""
    return next((word for word in metric.split("/") if word in GROUPS), OTHER)


class RayMetricsSink:
    """A telemetry sink: every number of a record, its round, steps and time too, as a gauge tagged run, stage and group.

    Needs a Ray that this process has joined, until it is closed.
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def log(self, record: Mapping[str, float | int | str | None], step: int) -> None:
        """Sets the gauges; a value of another kind is passed by."""
        for name, value in record.items():
            if isinstance(value, (int, float)):
                tags = {"run": self._run, "stage": str(record["stage"]), "group": group_of(name)}
                self._gauge(name).set(value, tags=tags)

    def table(self, name: str, table: Any, step: int) -> None:
        """Not here: Prometheus keeps numbers."""

    def close(self, failed: bool = False) -> None:
        """Nothing is left to write: Ray exports by itself."""

    def _gauge(self, name: str) -> Gauge:
        if name not in self._gauges:
            described = f"{name} of rayalign's metrics.jsonl"
            self._gauges[name] = Gauge(gauge_name(name), described, tag_keys=("run", "stage", "group"))
        return self._gauges[name]


class BusySeconds:
    """Counts the seconds that each worker of a group has worked: rayalign_worker_busy_s, tagged run, group and worker."""

    def __init__(self, run: str, group: str) -> None:
        self._counter = Counter(
            gauge_name(BUSY), "seconds that a worker has spent on calls", tag_keys=("run", "group", "worker")
        )
        self._counter.set_default_tags({"run": run, "group": group})

    def add(self, worker: int, seconds: float) -> None:
        """One call's."""
        if seconds > 0:
            self._counter.inc(seconds, tags={"worker": str(worker)})
