"""Ranks of offline training that die or hang: found within the deadline, ended, and the next ones have their resources."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rayalign import stopping
from rayalign.actors.deadline import fetch, is_ready
from rayalign.actors.fleet import RayFleet
from rayalign.config.placement import PlacementConfig
from rayalign.errors import CallFailed, Stopped, UserError, WorkerLost
from rayalign.stopping import stop_on_sigterm

CALL_S = 6.0
PLACEMENT = {"policy": {"workers": 2}, "deadlines": {"start_s": 120, "call_s": CALL_S}}


@pytest.fixture(scope="module")
def two_cores() -> Iterator[None]:
    """A Ray of this module's own, with room for two ranks and no more."""
    os.environ["RAY_worker_niceness"] = "0"
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False
    )
    yield
    ray.shutdown()


def reports_then_fails(what: str, report: Callable[[Any], None]) -> None:
    """Two reports; between them rank 1 stops, sleeps or dies, and rank 0 waits for it."""
    import torch.distributed as dist

    report("first")
    if dist.get_rank() == 1 and what == "sleeps":
        time.sleep(600)
    elif dist.get_rank() == 1 and what in ("stops", "dies"):
        os.kill(os.getpid(), signal.SIGSTOP if what == "stops" else signal.SIGKILL)
    dist.barrier()
    report("second")


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("stops", rf"offline training: nothing heard from Ray Train for {CALL_S:g} s .* unless a process was stopped"),
        ("sleeps", rf"offline training: nothing heard from Ray Train for {CALL_S:g} s "),
        ("dies", "offline training: (the|a) worker died"),
    ],
)
def test_a_rank_that_is_lost_gives_its_room_back(two_cores: None, tmp_path: Path, what: str, told: str) -> None:
    fleet = RayFleet(PlacementConfig.model_validate(PLACEMENT), stacks=str(tmp_path))
    reports: list[str] = []
    with pytest.raises(WorkerLost, match=told):
        fleet.run_ranks(reports_then_fails, what, reports.append)
    assert reports == ["first"]
    if what == "sleeps":  # the rank that hangs, the one that waits for it, and who waits for both
        assert "time.sleep" not in (tmp_path / "rank-0.txt").read_text()
        assert "reports_then_fails" in (tmp_path / "rank-1.txt").read_text()
        assert "_listen" in (tmp_path / "controller.txt").read_text()


def test_ranks_end_where_the_listener_does(two_cores: None) -> None:
    """The next test's have no room else."""

    def full(report: str) -> None:
        raise UserError("the disk is full")

    with pytest.raises(UserError, match="the disk is full"):
        RayFleet(PlacementConfig.model_validate(PLACEMENT)).run_ranks(reports_then_fails, "sleeps", full)


def test_a_trainer_that_is_ended_from_outside_is_lost(two_cores: None) -> None:
    """And no training that went well, though SIGTERM lets Python end in order."""

    def end_it(report: str) -> None:
        (trainer,) = [process for process in psutil.process_iter() if _is_of_this_ray(process, "ray::_fit")]
        trainer.terminate()

    with pytest.raises(WorkerLost, match="offline training: the worker died"):
        RayFleet(PlacementConfig.model_validate(PLACEMENT)).run_ranks(reports_then_fails, "sleeps", end_it)


def _is_of_this_ray(process: psutil.Process, title: str) -> bool:
    """Ray's workers are children of the node's manager, whose command names the session."""
    session = Path(ray._private.worker._global_node.get_session_dir_path()).name
    try:
        return "".join(process.cmdline()).startswith(title) and session in " ".join(process.parent().cmdline())
    except (psutil.Error, AttributeError):  # gone meanwhile
        return False


def test_the_next_ones_have_their_room(two_cores: None) -> None:
    reports: list[str] = []
    RayFleet(PlacementConfig.model_validate(PLACEMENT)).run_ranks(reports_then_fails, "works", reports.append)
    assert reports == ["first", "second"]


class _Signals:
    """Sends its reader SIGTERM in the midst of being read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _terminated, ()


def _terminated() -> str:
    os.kill(os.getpid(), signal.SIGTERM)
    return "read"


def test_a_stop_that_falls_into_rays_code_is_a_stop(
    two_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray takes what a signal's handler raises there for a fault of its own, and that for a lost worker."""
    monkeypatch.setattr(stopping, "SAME_S", 0)  # the second signal is one of its own, however soon it comes
    ref = ray.put(_Signals())
    with stop_on_sigterm(tmp_path / "stop", grace_s=60):
        assert fetch([ref], deadline_s=30, what="a call") == ["read"]  # the first one asks
        with pytest.raises(Stopped, match="asked twice to stop"):
            fetch([ref], deadline_s=30, what="a call")
        with pytest.raises(Stopped, match="asked twice to stop"):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            is_ready(_sleeps.remote(), 2)
    with stop_on_sigterm(tmp_path / "stop", grace_s=60), pytest.raises(CallFailed, match="a call: ValueError: no"):
        fetch([_fails.remote()], deadline_s=60, what="a call")  # what was asked earlier is forgotten


@ray.remote(num_cpus=0)
def _sleeps() -> None:
    time.sleep(10)


@ray.remote
def _fails() -> None:
    raise ValueError("no")
