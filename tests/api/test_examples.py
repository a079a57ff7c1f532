"""Each example of docs/examples runs on the real parts, with your own function, reward actor, rollout actor or objective."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.api import train
from rayalign.errors import ConfigError
from tests.conftest import REPOSITORY, one_thread

EXAMPLES = REPOSITORY / "docs" / "examples"


@pytest.fixture
def config(loop_values: dict[str, Any], tmp_path: Path) -> Path:
    """RFT alone, three short steps from the base model."""
    (rft,) = [stage for stage in loop_values["stages"] if stage["name"] == "rft"]
    base = rft["reward"]["init"]
    rft |= {"policy": base, "probe_size": 4}
    rft["reward"] |= {"steps": 2, "num_prompts": 16, "num_per_prompt": 1, "negatives": []}
    rft["improve"] |= {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 4}
    loop_values["stages"] = [rft]
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(loop_values))
    return path


@pytest.mark.parametrize(
    ("example", "backend", "reward_file"),
    [
        ("reward_function.py", "inprocess", "README.md"),
        ("reward_actor.py", "ray", "log_odds.json"),
        ("rollout_actor.py", "inprocess", "model.safetensors"),
        ("objective.py", "inprocess", "model.safetensors"),
    ],
)
def test_example_runs(example: str, backend: str, reward_file: str, config: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / example), str(config), f"placement.backend={backend}"],
        env=one_thread(), capture_output=True, text=True, timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = config.parent / "loop"
    assert (folder / "rft" / "reward" / reward_file).exists()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rewards = [row["policy/reward_mean"] for row in rows if "policy/reward_mean" in row]
    assert len(rewards) == 3
    if example == "reward_function.py":  # the function's own numbers reach the policy
        assert all(0 <= reward <= 1 for reward in rewards) and max(rewards) > 0
    if example == "rollout_actor.py":  # the policy learns from the very tokens that were sampled, notes and all
        assert max(row["policy/mismatch_mean"] for row in rows if "policy/mismatch_mean" in row) < 1e-3


def test_what_is_no_worker_is_refused(loop_values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="reward: give a function or a class, not int"):
        train(loop_values, reward=3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="overrides go with a config file"):
        train(loop_values, overrides=["seed=1"])
