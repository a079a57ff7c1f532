"""cluster/slurm.sh from end to end: a real Ray with its token, and stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# srun: its own options are dropped, and the command runs here, once. So all nodes of a job are this machine.
SRUN = """#!/bin/bash
while [ "${1#--}" != "$1" ]; do shift; done
if [ "$1" = ray ]; then set -- "$@" --object-store-memory=80000000; fi
exec "$@"
"""
# Stands for rayalign: says what it was given, and what it sees of the token.
RAYALIGN = """#!/bin/bash
echo "given: $*"
echo "mode: $RAY_AUTH_MODE"
if [ "$2" = wait.yaml ]; then echo started >"$STARTED"; sleep 300; fi
[ "$2" != bad.yaml ] || exit 7
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment that Slurm gives to a job of two nodes, in a checkout of one file."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    scripts = {"srun": SRUN, "scontrol": "#!/bin/sh\nprintf '%s\\n' $NODES\n", "rayalign": RAYALIGN}
    for name, text in scripts.items():
        (bin_dir / name).write_text(text)
        (bin_dir / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "run.yaml").write_text("name: run\n")
    job = str(random.SystemRandom().randrange(10**6))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "SLURM_"))}
    yield kept | {
        "PATH": f"{bin_dir}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path / "home"),
        "HEAD_IP": "127.0.0.1",
        "STARTED": str(tmp_path / "started"),
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": job,
        "SLURM_JOB_NODELIST": "two nodes",
        "NODES": "one two",
        "SLURM_CPUS_PER_TASK": "1",
    }
    shutil.rmtree(f"/tmp/ray-{job}", ignore_errors=True)


def nothing_is_left(slurm: dict[str, str]) -> bool:
    token_files = list((Path(slurm["HOME"]) / ".ray").glob("*.token"))
    running = subprocess.run(["pgrep", "-f", f"ray-{slurm['SLURM_JOB_ID']}"], capture_output=True, text=True).stdout
    return not token_files and not running and not Path(f"/tmp/ray-{slurm['SLURM_JOB_ID']}").exists()


@contextmanager
def job(slurm: dict[str, str], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """slurm.sh under way. Whatever happens, it is asked to end, and then takes its Ray with it."""
    script = ["bash", str(ROOT / "cluster" / "slurm.sh"), *arguments]
    with subprocess.Popen(script, env=slurm, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def run(slurm: dict[str, str], *arguments: str) -> tuple[int, str, str]:
    with job(slurm, *arguments) as process:
        said, complained = process.communicate(timeout=150)
    return process.returncode, said, complained


@pytest.mark.parametrize(("config", "status"), [("run.yaml", 0), ("bad.yaml", 1)])
def test_the_status_of_the_run_is_the_status_of_the_job(slurm: dict[str, str], config: str, status: int) -> None:
    nodes = "one two" if config == "run.yaml" else "one"
    ended, said, complained = run(slurm | {"NODES": nodes}, config, "seed=3")
    assert ended == status, said + complained
    runs = f"run_dir={slurm['SLURM_SUBMIT_DIR']}/runs"
    assert f"given: train {config} {runs} placement.address=auto seed=3" in said
    assert "mode: token" in said
    count = len(nodes.split())
    assert f"{count} of {count} nodes are up" in said
    assert nothing_is_left(slurm)


def test_a_cancelled_job_leaves_nothing_behind_and_its_token_was_private(slurm: dict[str, str]) -> None:
    with job(slurm | {"NODES": "one"}, "wait.yaml") as process:
        deadline = time.monotonic() + 120
        while not Path(slurm["STARTED"]).exists():
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.2)
        (token,) = (Path(slurm["HOME"]) / ".ray").glob("*.token")
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert len(token.read_text()) == 64
        process.terminate()
        process.communicate(timeout=90)
    assert process.returncode == 143
    assert nothing_is_left(slurm)


@pytest.mark.parametrize(("arguments", "missing"), [((), None), (("run.yaml",), "rayalign")])
def test_what_is_missing_is_said_before_anything_starts(
    slurm: dict[str, str], arguments: tuple[str, ...], missing: str | None
) -> None:
    if missing:
        (Path(slurm["PATH"].split(":")[0]) / missing).unlink()
        slurm |= {"PATH": f"{slurm['PATH'].split(':')[0]}:/usr/bin:/bin"}
    ended, _, complained = run(slurm, *arguments)
    assert ended == 2
    assert complained.startswith("slurm.sh: ") and complained.count("\n") == 1
    assert not (Path(slurm["HOME"]) / ".ray").exists()
