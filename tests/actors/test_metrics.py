"""What a run records is found where Prometheus asks: over HTTP, at the port of a real Ray."""

from __future__ import annotations

import random
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayalign.actors import metrics
from rayalign.actors.fleet import RayFleet
from rayalign.actors.metrics import RayMetricsSink, gauge_name, group_of
from rayalign.config.placement import PlacementConfig
from rayalign.config.telemetry import TelemetryConfig
from rayalign.telemetry.metrics import Mean
from rayalign.telemetry.tracker import Tracker

FOUND_WITHIN_S = 90.0
REPORTS_S = 2.0  # Ray forgets a gauge that is not set for two of its reports, of a second each here
BUSY = "ray_rayalign_worker_busy_s_total"
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


class Naps:
    """An engine that takes its time."""

    def __init__(self, nap_s: float) -> None:
        self.nap_s = nap_s

    def nap(self) -> None:
        time.sleep(self.nap_s)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    """A free port that the kernel gives to nobody who asks for any: nothing takes it between this look and Ray's start.

    Ray does not come up where its port is taken.
    """
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    named = [number for number in range(20000, 65536) if not first <= number <= last]  # Ray's workers have those below
    return next(number for number in random.sample(named, len(named)) if is_free(number))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def scraped(port: int) -> Iterator[tuple[str, dict[str, str], float]]:
    """(name, tags, value) of each sample of rayalign's."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except OSError:
        return
    for name, tags, value in SAMPLE.findall(text):
        if name.startswith("ray_rayalign_"):
            yield name, dict(re.findall(r'(\w+)="([^"]*)"', tags)), float(value)


def found_in_time(port: int, names: set[str], gone: str = "") -> dict[str, list[tuple[dict[str, str], float]]]:
    """The first answer that has these names, and not the one that is to be gone."""
    due = time.monotonic() + FOUND_WITHIN_S
    while time.monotonic() < due:
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, tags, value in scraped(port):
            found.setdefault(name, []).append((tags, value))
        if names <= set(found) and gone not in found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"after {FOUND_WITHIN_S:g} s there are {sorted(found)}, not {sorted(names)} without {gone!r}")


def check(found: dict[str, list[tuple[dict[str, str], float]]], expected: dict[str, tuple[str, str, float]]) -> None:
    for name, (stage, group, value) in expected.items():
        ((tags, shown),) = found[name]
        assert (tags["run"], tags["stage"], tags["group"], shown) == ("demo", stage, group, value), name


@pytest.mark.own_process
def test_records_and_the_work_of_each_worker_are_scraped(tmp_path: Path, port: int) -> None:
    placement = PlacementConfig.model_validate({"reward": {"workers": 2}, "share_cores": True})
    fleet = RayFleet(placement, run="demo", metrics_port=port)
    try:
        workers = fleet.start("reward", Naps, [0.2, 0.5])
        workers.submit(Naps.nap, [(), ()], phase="score").result()
        tracker = Tracker(tmp_path, TelemetryConfig(tensorboard=False), "demo", {})
        with tracker, tracker.also(RayMetricsSink("demo")):
            tracker.log("sft", None, 3, {"nll_token": 1.25})
            sft = {"ray_rayalign_nll_token": ("sft", "controller", 1.25), "ray_rayalign_step": ("sft", "controller", 3.0)}
            check(found_in_time(port, set(sft)), sft)
            tracker.log("irl", 1, 7, {"policy/kl_policy_to_ref": Mean(3.0, 4), "idle_frac/rollout": 0.25})
            irl = {
                "ray_rayalign_policy_kl_policy_to_ref": ("irl", "policy", 0.75),
                "ray_rayalign_idle_frac_rollout": ("irl", "rollout", 0.25),
                "ray_rayalign_round": ("irl", "controller", 1.0),
                "ray_rayalign_step": ("irl", "controller", 7.0),
            }
            found_in_time(port, set(irl))
            found_in_time(port, {BUSY}, gone="ray_rayalign_nll_token")  # the stage before is forgotten
            time.sleep(REPORTS_S)  # and by now this one's would be: no record comes meanwhile
            found = found_in_time(port, {*irl, BUSY}, gone="ray_rayalign_nll_token")
            check(found, irl)
    finally:
        fleet.close()
    busy = {tags["worker"]: value for tags, value in found[BUSY]}
    assert all(tags["group"] == "reward" and tags["run"] == "demo" for tags, _ in found[BUSY])
    assert busy["0"] >= 0.2 and busy["1"] >= 0.5 and set(busy) == {"0", "1"}


@pytest.mark.parametrize(
    ("metric", "name", "group"),
    [
        ("policy/kl_policy_to_ref", "rayalign_policy_kl_policy_to_ref", "policy"),
        ("idle_frac/reward", "rayalign_idle_frac_reward", "reward"),
        ("time/step_s", "rayalign_time_step_s", "controller"),
        ("my own-loss.x", "rayalign_my_own_loss_x", "controller"),
    ],
)
def test_names_and_groups(metric: str, name: str, group: str) -> None:
    assert (gauge_name(metric), group_of(metric)) == (name, group)


def test_a_sink_whose_thread_is_stuck_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "REPEAT_S", 0.01)
    monkeypatch.setattr(metrics, "CLOSED_WITHIN_S", 0.1)
    stuck, freed = threading.Event(), threading.Event()
    monkeypatch.setattr(RayMetricsSink, "_set", lambda sink, found: (stuck.set(), freed.wait()))
    sink = RayMetricsSink("demo")
    try:
        assert stuck.wait(FOUND_WITHIN_S)
        closing = threading.Thread(target=sink.close, daemon=True)
        closing.start()
        closing.join(FOUND_WITHIN_S)
        assert not closing.is_alive()
    finally:
        freed.set()
