"""A run of everything that selects: made once, by the command line, on the small planted base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import DEMO, run_rayalign

NUM_PROMPTS, NUM_PER_PROMPT = 50, 2
NUM_CHOSEN = 128  # prompts of best_of_n
N = [4, 1, 2]


@pytest.fixture(scope="session")
def selection_values(planted_base: Path) -> dict[str, Any]:
    """SFT, its closed-form reward, best of n, RAFT on it, and an evaluation of all that answers."""
    world, base = planted_base / "world", str(planted_base / "base" / "policy")
    text = DEMO.read_text().replace("stage:base/policy", base)
    values = yaml.safe_load(text.replace("stage:world", str(world)))
    sft = next(stage for stage in values["stages"] if stage["name"] == "sft")
    sampling = {"max_new_tokens": 26}
    answerers = {
        "sft": "stage:sft/policy",
        "raft": "stage:raft/policy",
        "best": {"policy": "stage:sft/policy", "reward": "stage:ratio/reward", "best_of": 4},
        "beyond": {"policy": "stage:sft/policy", "reference": base, "power": 2.0},
        "itself": {"policy": "stage:sft/policy", "reference": base, "power": 1.0, "min_prob": 1e-6},
    }
    values["name"] = "selection"
    values["placement"] = {"backend": "inprocess"}
    values["stages"] = [
        sft,
        {"kind": "log_ratio", "name": "ratio", "policy": "stage:sft/policy", "reference": base},
        {
            "kind": "best_of_n", "policy": "stage:sft/policy", "reward": "stage:ratio/reward", "n": N,
            "num_prompts": NUM_CHOSEN, "sampling": sampling, "golden": "planted",
        },
        {**sft, "name": "raft", "policy": "stage:sft/policy", "data": {"path": "stage:best_of_n/best.jsonl"}},
        {
            "kind": "evaluate", "models": answerers, "prompts": {"path": str(world / "eval_prompts.jsonl")},
            "num_prompts": NUM_PROMPTS, "num_per_prompt": NUM_PER_PROMPT, "temperatures": [1.0],
            "sampling": sampling, "reward": "stage:ratio/reward", "golden": "planted",
        },
    ]  # fmt: skip
    return values


@pytest.fixture(scope="session")
def selection(selection_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run."""
    folder = tmp_path_factory.mktemp("selection")
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**selection_values, "run_dir": str(folder)}, sort_keys=False))
    done = run_rayalign("train", str(config))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "selection" / "said.txt").write_text(done.stderr)
    return folder / "selection"


def rows_of(file: Path) -> list[dict[str, Any]]:
    """A JSONL file."""
    return [json.loads(line) for line in file.read_text().splitlines()]
