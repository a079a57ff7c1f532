"""What the tests share: a small planted base model, made once by the product's own stages, and quiet threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import yaml
from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[1]
DEMO = REPOSITORY / "rayalign" / "planted" / "demo.yaml"
CHILD = "RAYALIGN_TEST_IN_OWN_PROCESS"
BASE = "RAYALIGN_TEST_BASE"
HUNG_S = 550  # no test takes a minute on two quiet cores, and a busy machine may take ten times as long
OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")

# The same cases every time, however busy the machine is.
hypothesis.settings.register_profile("rayalign", derandomize=True, deadline=None)
hypothesis.settings.load_profile("rayalign")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs a test marked `own_process` in a fresh Python, where no engine of an earlier test lives.

    Those leave process groups behind, and so much address space that Ray cannot fork.
    """
    if pyfuncitem.get_closest_marker("own_process") is None or CHILD in os.environ:
        return None
    environment = {key: value for key, value in one_thread().items() if key not in OF_RANKS} | {CHILD: "1"}
    if base := pyfuncitem.funcargs.get("planted_base"):
        environment[BASE] = str(base)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env=environment,
        capture_output=True,
        text=True,
        timeout=HUNG_S,
    )
    assert done.returncode == 0, done.stdout[-6000:]
    return True


@pytest.fixture(autouse=True, scope="module")
def found_environment() -> Iterator[None]:
    """What a module's engines and fleets tell this process of ranks and devices is not told to the next module."""
    found = {name: os.environ.get(name) for name in (*OF_RANKS, "CUDA_VISIBLE_DEVICES")}
    yield
    for name, value in found.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def one_thread() -> dict[str, str]:
    """Environment of a process that keeps to one core."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_rayalign(*arguments: str, timeout_s: float = HUNG_S, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "rayalign.cli", *arguments],
        env={**one_thread(), **environment},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def demo_values() -> dict[str, Any]:
    """The demo's config as plain values, to be cut down."""
    return yaml.safe_load(DEMO.read_text())


@pytest.fixture(scope="session")
def planted_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a small world and a base model that writes its grammar: stages `world` and `base`.

    RAYALIGN_TEST_BASE names one that an earlier session made: a minute less for who runs one test again and again.
    """
    if ready := os.environ.get(BASE):
        return Path(ready)
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "planted"  # one for all workers of pytest
    with FileLock(f"{folder}.lock"):
        if not (folder / "base" / "base" / "done.json").exists():
            _make_base(folder)
    return folder / "base"


def _make_base(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    values = demo_values()
    stages = {stage["name"]: stage for stage in values["stages"]}
    stages["world"] |= {"num_pretrain": 18000}
    stages["pretrain"] |= {"cache": False}
    stages["base"] |= {"cache": False}
    values |= {
        "name": "base",
        "run_dir": str(folder),
        "data": {},
        "placement": {"backend": "inprocess"},
        "stages": [stages["world"], stages["pretrain"], stages["base"]],
    }
    config = folder / "base.yaml"
    config.write_text(yaml.safe_dump(values))
    done = run_rayalign("train", str(config))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def loop_values(planted_base: Path, tmp_path: Path) -> dict[str, Any]:
    """A config of SFT, RFT and evaluation on the small base model, small enough for a test."""
    text = DEMO.read_text().replace("stage:base/policy", str(planted_base / "base" / "policy"))
    values = yaml.safe_load(text.replace("stage:world", str(planted_base / "world")))
    stages = {stage["name"]: stage for stage in values["stages"]}
    stages["evaluate"] |= {"num_prompts": 150, "temperatures": [1.0]}
    values |= {
        "name": "loop",
        "run_dir": str(tmp_path),
        "stages": [stages[name] for name in ("sft", "base_samples", "rft", "evaluate")],
    }
    return values
