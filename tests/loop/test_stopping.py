"""SIGTERM to the program itself: asked for, asked for again, and what comes out of the block where it had to end at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from rayalign import stopping
from rayalign.errors import Stopped
from rayalign.stopping import stop_on_sigterm


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_one_that_is_sent_to_process_and_group_is_one(tmp_path: Path) -> None:
    stop_file = tmp_path / ".stop"
    with stop_on_sigterm(stop_file, grace_s=60):
        for _ in range(3):
            ask()
        assert stop_file.exists()
    assert not stop_file.exists()


def test_a_later_one_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_S", 0.05)
    with pytest.raises(Stopped, match="asked twice to stop.*last checkpoint, or begins"):
        with stop_on_sigterm(tmp_path / ".stop", grace_s=60):
            ask()
            time.sleep(0.1)
            ask()
            pytest.fail("went on")


def test_time_is_over(tmp_path: Path) -> None:
    with pytest.raises(Stopped, match=r"0.05 s \(checkpoints.grace_s\) were too few"):
        with stop_on_sigterm(tmp_path / ".stop", grace_s=0.05):
            ask()
            time.sleep(10)


def test_it_is_a_stop_whatever_c_code_made_of_it(tmp_path: Path) -> None:
    """Ray's `wait` gives a SystemError where a signal's handler raised in it; that is no fault of the program."""
    with pytest.raises(Stopped, match="were too few"):
        with stop_on_sigterm(tmp_path / ".stop", grace_s=0.05):
            try:
                ask()
                time.sleep(10)
            except Stopped as error:
                raise SystemError("<cyfunction CoreWorker.wait> returned a result with an exception set") from error


def test_other_errors_are_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        with stop_on_sigterm(tmp_path / ".stop", grace_s=60):
            ask()
            raise ValueError("mine")


def test_an_alarm_of_the_callers_own_still_rings(tmp_path: Path) -> None:
    """It is how pytest-timeout ends a test that hangs, and it must end those that train in their own process."""
    rung = []
    handler = signal.signal(signal.SIGALRM, lambda signum, frame: rung.append(time.monotonic()))
    left_s, again_s = signal.setitimer(signal.ITIMER_REAL, 0.2)
    begun = time.monotonic()
    try:
        with stop_on_sigterm(tmp_path / ".stop", grace_s=60):  # nobody asks: it rings inside
            while not rung and time.monotonic() < begun + 10:
                time.sleep(0.01)
        assert rung
        signal.setitimer(signal.ITIMER_REAL, 1)
        with stop_on_sigterm(tmp_path / ".stop", grace_s=60):
            ask()
            time.sleep(1.1)
            assert len(rung) == 1  # while the grace is counted, it waits
        while len(rung) == 1 and time.monotonic() < begun + 20:
            time.sleep(0.01)
        assert len(rung) == 2
    finally:
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, left_s, again_s)
