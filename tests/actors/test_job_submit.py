"""`ray job submit` against a local head with Ray's token authentication, end to end; a job's failure is its exit code."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.conftest import demo_values

RAY = str(Path(sys.executable).parent / "ray")


def free_port() -> int:
    """A port that nobody listens on, outside the range that Ray gives its workers."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if not 10002 <= port <= 19999:
            return port


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A Ray head that wants a token; yields the environment of one who has it."""
    folder = Path(tempfile.mkdtemp(prefix="ra-", dir="/tmp"))  # short: Ray's sockets lie below it
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    dashboard = free_port()
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_worker_niceness": "0",
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "1",
    }
    command = [
        RAY, "start", "--head", "--block", f"--port={free_port()}", f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", "--num-cpus=2",
        f"--temp-dir={folder}/r", "--object-store-memory=80000000",
    ]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_for(address, folder / "head.log")
        yield {**environment, "RAY_API_SERVER_ADDRESS": address, "RAY_ADDRESS": address}
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def submit(environment: dict[str, str], folder: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    """`ray job submit` from a working directory."""
    return subprocess.run(
        [RAY, "job", "submit", "--working-dir", str(folder), "--", *entrypoint],
        env=environment, capture_output=True, text=True, timeout=200, cwd=folder,
    )


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A working directory with a config: a tiny world, a tiny model, a sampled set."""
    values = demo_values()
    stages = {stage["name"]: stage for stage in values["stages"]}
    stages["world"] |= {"num_pretrain": 200, "num_demonstrations": 20}
    stages["pretrain"] |= {"cache": False}
    stages["pretrain"]["scratch"] |= {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32}
    stages["pretrain"]["scratch"] |= {"num_attention_heads": 1, "num_key_value_heads": 1}  # heads of 32, which vLLM knows
    sample = stages["base_samples"] | {"policy": "stage:pretrain/policy", "num_per_prompt": 1}
    values |= {
        "name": "job",
        "run_dir": str(tmp_path / "runs"),
        "model": values["model"] | {"path": "stage:pretrain/policy"},
        "data": {},
        "placement": {"address": "auto"},
        "stages": [stages["world"], stages["pretrain"], sample],
    }
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "job.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_job_runs_end_to_end(head: dict[str, str], job: Path) -> None:
    done = submit(head, job, sys.executable, "-m", "rayalign.cli", "train", "job.yaml")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    samples = job.parent / "runs" / "job" / "base_samples" / "samples.jsonl"
    assert len(samples.read_text().splitlines()) == 20


def test_a_failing_job_fails_the_submission_with_its_one_line(head: dict[str, str], job: Path) -> None:
    done = submit(head, job, sys.executable, "-m", "rayalign.cli", "train", "job.yaml", "placement.policy.cpus=64")
    assert done.returncode == 1
    assert "placement.policy needs 1 bundle(s) of 21.33 CPU" in done.stdout + done.stderr


def test_without_the_token_nobody_gets_in(head: dict[str, str], job: Path) -> None:
    stranger = {k: v for k, v in head.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(job)}
    done = submit(stranger, job, "echo", "hello")
    assert done.returncode != 0
    assert "Unauthorized" in done.stdout + done.stderr


def _wait_for(address: str, log: Path) -> None:
    """Until the dashboard answers, with whatever status."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=2)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.5)
    raise AssertionError(f"the head did not start:\n{log.read_text()[-2000:]}")
