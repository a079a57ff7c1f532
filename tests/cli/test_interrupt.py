"""Ctrl-C: exit code 130, one line, the Ray that was started is gone, and finished stages are kept."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from tests.cli.conftest import Workplace
from tests.conftest import one_thread

START_S = 120


def wait_for(words: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the run has said it."""
    due = time.monotonic() + START_S
    while words not in log.read_text():
        assert process.poll() is None and time.monotonic() < due, log.read_text()
        time.sleep(0.2)


def test_ctrl_c_ends_the_run_and_its_ray(workplace: Workplace) -> None:
    workplace.values["placement"] = {}
    workplace.values["stages"] = [
        {"kind": "planted", "num_pretrain": 10, "num_prompts": 10, "num_eval_prompts": 10},
        {"kind": "sft", "batch_size": 2, "epochs": 100_000},
    ]
    command = [sys.executable, "-m", "rayalign.cli", "train", str(workplace.write())]
    log = workplace.folder / "stderr"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command, cwd=workplace.folder, env=one_thread(), stderr=stderr)
    try:
        wait_for("sft: ", log, process)  # Ray Train is starting its workers
        time.sleep(2)
        started = psutil.Process(process.pid).children(recursive=True)
        assert any("raylet" in child.name() for child in started)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()
    err = log.read_text()
    assert process.returncode == 130, err
    assert err.strip().splitlines()[-1].startswith("rayalign: interrupted"), err
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(started, timeout=20)
    assert not alive, alive
    assert (workplace.run_folder / "world" / "done.json").exists()
    assert not list(workplace.run_folder.rglob("*.part"))
