"""Metrics through Ray: gauges of a run's records and counters of its workers, which Ray's dashboard and Prometheus read.

Ray puts `ray_` before each name, and adds tags of its own (node, session).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Counter, Gauge

PREFIX = "rayalign_"
GROUPS = ("policy", "reward", "rollout")
OTHER = "controller"
BUSY = "worker_busy_s"
REPEAT_S = 1.0  # Ray keeps a gauge for two intervals of its reports, which are a second or more
CLOSED_WITHIN_S = 5.0  # a Ray that is lost may keep the thread in a call; a run's end does not wait for it


def gauge_name(metric: str) -> str:
    """Example: policy/kl_policy_to_ref is rayalign_policy_kl_policy_to_ref."""
    return PREFIX + re.sub(r"[^a-zA-Z0-9_]", "_", metric)


def group_of(metric: str) -> str:
    """The group that a metric tells of, by its name (policy/entropy, idle_frac/rollout); else the controller."""
    return next((word for word in metric.split("/") if word in GROUPS), OTHER)


class RayMetricsSink:
    """A telemetry sink: every number of a record, its round, steps and time too, as a gauge tagged run, stage and group.

    Ray forgets a gauge that is not set again: a thread does so with the newest values of the stage in progress, until the
    sink is closed. Close it before this process leaves Ray.
    """

    def __init__(self, run: str) -> None:
        self._run, self._stage = run, ""
        self._gauges: dict[str, Gauge] = {}
        self._newest: dict[str, float] = {}  # of the stage in progress
        self._changing, self._closed = threading.Lock(), threading.Event()
        self._repeating = threading.Thread(target=self._repeat, name="rayalign-gauges", daemon=True)
        self._repeating.start()

    def log(self, record: Mapping[str, float | int | str | None], step: int) -> None:
        """Sets the gauges; a value of another kind is passed by."""
        found = {name: float(value) for name, value in record.items() if isinstance(value, (int, float))}
        with self._changing:
            if record["stage"] != self._stage:
                self._stage, self._newest = str(record["stage"]), {}
            self._newest |= found
            self._set(found)

    def table(self, name: str, table: Any, step: int) -> None:
        """Not here: Prometheus keeps numbers."""

    def close(self, failed: bool = False) -> None:
        """Ends the thread, or leaves it after CLOSED_WITHIN_S to end when it can; Ray forgets the gauges soon."""
        self._closed.set()
        self._repeating.join(CLOSED_WITHIN_S)

    def _repeat(self) -> None:
        while not self._closed.wait(REPEAT_S):
            with self._changing:
                self._set(self._newest)

    def _set(self, found: Mapping[str, float]) -> None:
        for name, value in found.items():
            if name not in self._gauges:
                described = f"{name} of rayalign's metrics.jsonl"
                self._gauges[name] = Gauge(gauge_name(name), described, tag_keys=("run", "stage", "group"))
            self._gauges[name].set(value, tags={"run": self._run, "stage": self._stage, "group": group_of(name)})


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
