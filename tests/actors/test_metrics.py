"""What a run records is found where Prometheus asks: over HTTP, at the port of a real Ray."""

from __future__ import annotations

import re
import socket
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rayalign.actors.fleet import RayFleet
from rayalign.actors.metrics import RayMetricsSink, gauge_name, group_of
from rayalign.config.placement import PlacementConfig
from rayalign.config.telemetry import TelemetryConfig
from rayalign.telemetry.metrics import Mean
from rayalign.telemetry.tracker import Tracker

FOUND_WITHIN_S = 90.0
FORGOTTEN_AFTER_S = 4.0  # two of Ray's reports, of a second here, and what a busy machine takes
SAMPLE = re.compile(r"^(\w+)\{(.*)\} (\S+)$", re.MULTILINE)


class Naps:
    """An engine that takes its time."""

    def __init__(self, nap_s: float) -> None:
        self.nap_s = nap_s

    def nap(self) -> None:
        time.sleep(self.nap_s)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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


def found_in_time(port: int, names: set[str]) -> dict[str, list[tuple[dict[str, str], float]]]:
    due = time.monotonic() + FOUND_WITHIN_S
    while time.monotonic() < due:
        found: dict[str, list[tuple[dict[str, str], float]]] = {}
        for name, tags, value in scraped(port):
            found.setdefault(name, []).append((tags, value))
        if names <= set(found):
            return found
        time.sleep(0.3)
    raise AssertionError(f"after {FOUND_WITHIN_S:g} s there are only {sorted(found)}")


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
            time.sleep(FORGOTTEN_AFTER_S)  # no record comes meanwhile
            found = found_in_time(port, {*irl, "ray_rayalign_worker_busy_s_total"})
            check(found, irl)
            assert "ray_rayalign_nll_token" not in found
    finally:
        fleet.close()
    busy = {tags["worker"]: value for tags, value in found["ray_rayalign_worker_busy_s_total"]}
    assert all(tags["group"] == "reward" and tags["run"] == "demo" for tags, _ in found["ray_rayalign_worker_busy_s_total"])
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
