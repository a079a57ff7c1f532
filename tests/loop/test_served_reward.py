"""A run that scores with another run's reward over HTTP: policy steps, a choice among samples, and a measurement."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.config.model import LearnerConfig
from rayalign.config.service import TOKEN as VARIABLE
from rayalign.data.template import Template, load_tokenizer
from rayalign.models.reward import RewardModel
from rayalign.serving.http import RewardServer
from rayalign.serving.saved import SavedReward
from tests.conftest import run_rayalign
from tests.models.tiny import model_config
from tests.services import TOKEN


@pytest.fixture
def reward(planted_base: Path, tmp_path: Path) -> Path:
    """A reward with a random head on the small base model."""
    base, folder = planted_base / "base" / "policy", tmp_path / "reward"
    model = RewardModel.from_backbone(str(base), model_config(), LearnerConfig(), pooling="mean", seed=3)
    model.save(folder, {weight.name: weight.tensor() for weight in model.wire_weights()})
    Template(load_tokenizer(base)).save_tokenizer(folder)
    return folder


@pytest.fixture
def url(reward: Path) -> Iterator[str]:
    """It, served as `rayalign serve-reward` does."""
    with RewardServer(("127.0.0.1", 0), SavedReward(reward), TOKEN) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/score"
        server.shutdown()


def test_a_run_scores_over_http(
    loop_values: dict[str, Any], planted_base: Path, reward: Path, url: str, tmp_path: Path
) -> None:
    """The measured reward is that of the folder itself, and the token is in no file and on no terminal."""
    base, sampling = str(planted_base / "base" / "policy"), {"max_new_tokens": 31}
    rft = next(stage for stage in loop_values["stages"] if stage["name"] == "rft")
    evaluate = next(stage for stage in loop_values["stages"] if stage["name"] == "evaluate")
    shared = {key: evaluate[key] for key in ("prompts", "golden")} | {"sampling": sampling, "num_prompts": 24}
    measured = {"kind": "evaluate", "models": {"base": base}, "temperatures": [0.7], **shared}
    loop_values["placement"] = {"backend": "inprocess", "reward_service": {"batch_size": 7, "retries": 0}}
    loop_values["stages"] = [
        {"kind": "rl", "policy": base, "reward": url, "sampling": sampling, "improve": rft["improve"] | {"steps": 2}},
        {"kind": "best_of_n", "policy": "stage:rl/policy", "reward": url, "n": [1, 2], **shared},
        {**measured, "name": "over_http", "reward": url},
        {**measured, "name": "direct", "reward": str(reward)},
    ]
    config = tmp_path / "loop.yaml"
    config.write_text(yaml.safe_dump(loop_values))
    done = run_rayalign("train", str(config), **{VARIABLE: TOKEN})
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "loop"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert sum("policy/reward_mean" in row for row in rows) == 2
    served, direct = (
        json.loads((run / name / "results.json").read_text())["models"]["base"]["0.7"] for name in ("over_http", "direct")
    )
    assert served["ended_frac"] == 1 and served["golden"] == direct["golden"]
    assert served["reward"]["mean"] == pytest.approx(direct["reward"]["mean"], abs=1e-5)
    points = json.loads((run / "best_of_n" / "curve.json").read_text())["points"]
    assert points[1]["reward"]["mean"] > points[0]["reward"]["mean"]
    files = [file for file in run.rglob("*") if file.is_file()]
    assert files and not any(TOKEN.encode() in file.read_bytes() for file in files)
    assert TOKEN not in done.stdout + done.stderr
