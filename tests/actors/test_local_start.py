"""A Ray started on this machine says nothing while all is well, and asks for its token."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rayalign.actors import cluster
from rayalign.actors.cluster import connect
from rayalign.config.placement import PlacementConfig
from rayalign.errors import PlacementError
from tests.conftest import one_thread

START = """
import logging, ray
from ray._raylet import AuthenticationMode, get_authentication_mode
from rayalign.actors.cluster import connect
from rayalign.config.placement import PlacementConfig
assert connect(PlacementConfig(), actor_logs=False)
assert get_authentication_mode() == AuthenticationMode.TOKEN
ray.shutdown()
"""


def test_it_starts_without_a_word_and_with_a_token(tmp_path: Path) -> None:
    environment = {k: v for k, v in one_thread().items() if not k.startswith("RAY_")} | {"HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", START], env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""


SIGTERM = """
import os, pathlib, signal, sys
from rayalign.actors.cluster import connect
from rayalign.config.placement import PlacementConfig
from rayalign.stopping import stop_on_sigterm
asked = pathlib.Path(sys.argv[1])
with stop_on_sigterm(asked, grace_s=60):
    assert connect(PlacementConfig(), actor_logs=False)
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked.exists()
print("went on")
"""


def test_a_ray_that_is_started_leaves_sigterm_to_the_run(tmp_path: Path) -> None:
    """Its own answer would end the run at once, with nothing saved."""
    command = [sys.executable, "-c", SIGTERM, str(tmp_path / ".stop")]
    done = subprocess.run(command, env=one_thread(), capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr


def test_other_warnings_of_its_are_told(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger(cluster.AUTHENTICATION)
    logger.addFilter(cluster._is_worth_telling)
    try:
        with caplog.at_level(logging.WARNING, logger=logger.name):
            logger.warning("Token authentication is disabled for this Ray cluster. Anyone ...")
            logger.warning("Token authentication is enabled for this Ray cluster. Set ...")
    finally:
        logger.removeFilter(cluster._is_worth_telling)
    assert [record.getMessage().split()[3] for record in caplog.records] == ["disabled"]


def test_a_port_for_metrics_that_is_taken_is_told_before_ray_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PlacementError, match=f"telemetry.metrics_port: {port} cannot be used"):
            connect(PlacementConfig(), actor_logs=False, metrics_port=port)


def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def late(**_: object) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen")

    monkeypatch.setattr("ray.init", late)
    with pytest.raises(PlacementError, match="Ray did not start on this machine .The current node timed out") as told:
        connect(PlacementConfig(), actor_logs=False)
    assert "\n" not in str(told.value)
