"""A real MLflow server on the loopback, and its own client, read back what a run wrote.

The full mlflow cannot be installed beside vLLM and Ray of the pinned versions (it asks for older cachetools and pyarrow).
RAYALIGN_MLFLOW_PYTHON names the Python of an environment of its own, made with `pip install mlflow pydantic rich pyyaml`;
rayalign's telemetry runs there as it is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, one_thread
from tests.telemetry.trackers import COLUMNS, CURVES, ROWS

HERE = all(importlib.util.find_spec(name) for name in ("mlflow", "sqlalchemy"))
PYTHON = sys.executable if HERE else os.environ.get("RAYALIGN_MLFLOW_PYTHON")
CLIENT = sys.executable if importlib.util.find_spec("mlflow") else PYTHON  # mlflow-skinny is a client
UP_WITHIN_S = 240.0
NO_JOBS = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # else it starts some processes for jobs of its own
pytestmark = pytest.mark.skipif(PYTHON is None, reason="no full mlflow here: RAYALIGN_MLFLOW_PYTHON names a Python with it")

READ = """
import json, sys
from mlflow.tracking import MlflowClient
client = MlflowClient(sys.argv[1])
run = client.get_run(sys.argv[2])
print(json.dumps({
    "params": run.data.params,
    "status": run.info.status,
    "name": run.info.run_name,
    "experiment": client.get_experiment(run.info.experiment_id).name,
    "curves": {n: [(m.step, m.value) for m in client.get_metric_history(sys.argv[2], n)] for n in run.data.metrics},
    "table": json.load(open(client.download_artifacts(sys.argv[2], "irl/samples.json", sys.argv[3]))),
    "tables": json.loads(run.data.tags["mlflow.loggedArtifacts"]),
}))
"""
LOSE = """
import logging, os, signal, sys
from pathlib import Path
from rayalign.config.telemetry import TelemetryConfig
from rayalign.telemetry.tracker import Tracker
logging.basicConfig(format="%(message)s", level="WARNING")
with Tracker(Path(sys.argv[1]), TelemetryConfig(tensorboard=False, mlflow={"tracking_uri": sys.argv[2]}), "lost", {}) as t:
    t.log("irl", 0, 1, {"kl": 0.5})
    os.killpg(int(sys.argv[3]), signal.SIGKILL)
    for step in (2, 3):
        t.log("irl", 0, step, {"kl": 0.5})
        t.table("irl", step, "samples", ("a",), [(1,)])
print("went on")
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with MLflow's client; a server that does not answer is given up at once."""
    quick = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [str(CLIENT), *arguments], env=one_thread() | quick, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    folder = tmp_path_factory.mktemp("mlflow")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts")]
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with (folder / "log").open("wb") as log:
        command = [str(PYTHON), "-m", "mlflow", "server", *stores, *where]
        process = subprocess.Popen(command, env=one_thread() | NO_JOBS, stdout=log, stderr=log, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        assert is_up(url, process), (folder / "log").read_text()[-3000:]
        yield url, process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(timeout=20)


def is_up(url: str, process: subprocess.Popen[bytes]) -> bool:
    due = time.monotonic() + UP_WITHIN_S
    while time.monotonic() < due and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    return False


def test_a_server_holds_curves_config_and_tables(tmp_path: Path, server: Any) -> None:
    config = {"tensorboard": False, "mlflow": {"tracking_uri": server[0]}}
    run = tmp_path / "run"
    wrote = python("-m", "tests.telemetry.trackers", str(run), json.dumps(config))
    assert wrote.returncode == 0, wrote.stderr[-3000:]
    read = python("-c", READ, server[0], (run / "mlflow_run_id").read_text().strip(), str(tmp_path))
    assert read.returncode == 0, read.stderr[-3000:]
    found = json.loads(read.stdout.splitlines()[-1])
    assert (found["status"], found["name"], found["experiment"]) == ("FINISHED", "demo", "rayalign")
    assert found["params"] == {
        "seed": "0",
        "stages.sft.name": "sft",
        "stages.sft.epochs": "3",
        "stages.irl.name": "irl",
        "stages.irl.rounds": "2",
    }
    assert {name: [tuple(point) for point in points] for name, points in found["curves"].items()} == CURVES
    assert found["table"] == {"columns": ["global_step", *COLUMNS], "data": [[3, *row] for row in ROWS]}
    assert found["tables"] == [{"path": "irl/samples.json", "type": "table"}]


def test_a_server_that_is_lost_is_told_once_and_the_run_goes_on(tmp_path: Path, server: Any) -> None:
    url, process = server
    done = python("-c", LOSE, str(tmp_path), url, str(process.pid))
    assert (done.returncode, done.stdout) == (0, "went on\n"), done.stderr[-3000:]
    told = [line for line in done.stderr.splitlines() if line.startswith("MLflow gets no more")]
    assert [line.split(" (")[0] for line in told] == ["MLflow gets no more metrics", "MLflow gets no more tables"]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_an_address_where_no_mlflow_is_is_one_line(tmp_path: Path) -> None:
    config = {"tensorboard": False, "mlflow": {"tracking_uri": "http://127.0.0.1:1"}}
    done = python("-m", "tests.telemetry.trackers", str(tmp_path), json.dumps(config))
    assert "telemetry.mlflow.tracking_uri http://127.0.0.1:1 does not answer as MLflow" in done.stderr.splitlines()[-1]
