"""Finished runs as `rayalign train` leaves them, with tiny random models in the place of trained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rayalign.config.load import dump_config, parse_config
from rayalign.config.model import LearnerConfig
from rayalign.data.template import Template
from rayalign.models.reward import RewardModel
from rayalign.models.rewards import write_log_ratio
from rayalign.models.token_reward import TokenRewardModel
from tests.models.test_token_reward import WEIGHTED
from tests.models.tiny import model_config, save_tiny
from tests.serving.test_saved import template

EXAMPLES = [
    {"prompt": "Nora asks opening teapot at plaza", "answers": {"sft": "no", "rft": "thank you ."}},
    {"prompt": "David asks size scarf at studio", "answers": {"sft": "no clue", "rft": "no"}},
]
DEMONSTRATIONS = [{"prompt": f"{name} asks shade plate at plaza", "response": "thank you ."} for name in ("Leo", "Nora")]
IRL = {
    "kind": "irl",
    "name": "rft",
    "policy": "stage:sft/policy",
    "reward": {"init": "owner/base"},
    "sampling": {"max_new_tokens": 20},
}
MODELS = {"sft": "stage:sft/policy", "rft": "stage:rft/policy"}
HELDOUT = {"path": "owner/heldout"}  # prompts that no stage trains on
EVALUATE = {"kind": "evaluate", "models": MODELS, "prompts": HELDOUT, "sampling": {"max_new_tokens": 20}}


def make_run(folder: Path, stages: list[dict[str, Any]], **keys: Any) -> Path:
    """A run's folder with its config and no finished stage; `finish` adds those."""
    folder.mkdir(parents=True)
    rows = folder.parent / "demos.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in DEMONSTRATIONS))
    values = {
        "name": folder.name,
        "run_dir": str(folder.parent),
        "model": {"path": "owner/base", "max_length": 200},
        "data": {"demonstrations": {"path": str(rows)}, "prompts": {"path": "owner/prompts"}},
        "stages": stages,
        **keys,
    }
    (folder / "config.yaml").write_text(dump_config(parse_config(values)))
    return folder


def finish(run: Path, stage: str) -> Path:
    """Marks a stage as finished; its folder."""
    (run / stage).mkdir(exist_ok=True)
    (run / stage / "done.json").write_text("{}")
    return run / stage


def rft_run(folder: Path, *, pooling: Any = "last") -> Path:
    """SFT, then the alternation with a policy and a sequence reward, then an evaluation."""
    run = make_run(folder, [{"kind": "sft"}, IRL, EVALUATE])
    save_policy(finish(run, "sft") / "policy", seed=1)
    save_policy(finish(run, "rft") / "policy", seed=2)
    save_reward(run / "rft" / "reward", pooling=pooling)
    estimate = {"mean": 0.75, "low": 0.7, "high": 0.8, "num": 40}
    cells = {"1": {"golden": estimate, "length": estimate, "ended_frac": 1.0}}
    results = {"models": {"sft": cells, "rft": cells}, "examples": EXAMPLES}
    (finish(run, "evaluate") / "results.json").write_text(json.dumps(results))
    return run


def save_policy(folder: Path, *, seed: int = 0, like: Template | None = None) -> None:
    """A random policy with its tokenizer."""
    save_tiny(folder, seed=seed, vocab_size=400)
    (like or template("planted")).save_tokenizer(folder)


def save_reward(folder: Path, *, pooling: Any = "last", seed: int = 1) -> None:
    """A random sequence reward with a normaliser, and its tokenizer."""
    base = save_tiny(folder.parents[2] / "backbone", seed=seed, vocab_size=400)
    reward = RewardModel.from_backbone(base, model_config(), LearnerConfig(), pooling=pooling, seed=seed)
    reward.mean, reward.std = 0.3, 0.2
    reward.save(folder, {weight.name: weight.tensor() for weight in reward.wire_weights()})
    template("planted").save_tokenizer(folder)


def save_token_reward(folder: Path) -> None:
    """A random reward of tokens."""
    base = save_tiny(folder.parents[2] / "backbone", vocab_size=400)
    tokens = TokenRewardModel.from_backbone(base, model_config(), LearnerConfig(), WEIGHTED, seed=0)
    with torch.no_grad():  # fresh heads say nearly nothing
        tokens.heads.reward.weight.mul_(30)
    tokens.save(folder, {weight.name: weight.tensor().clone() for weight in tokens.wire_weights()})
    template("planted").save_tokenizer(folder)


def implicit_run(folder: Path, reference: str) -> Path:
    """A stage `implicit`, whose reward names its policy and the model that it started from."""
    run = make_run(folder, [{"kind": "implicit", "policy": reference, "sampling": {"max_new_tokens": 20}}])
    save_policy(finish(run, "implicit") / "policy", seed=2)
    write_log_ratio(run / "implicit" / "reward", str(run / "implicit" / "policy"), reference, scale=0.1)
    return run


def record(folder: Path) -> dict[str, Any]:
    """reproduce.json of an exported folder."""
    found: dict[str, Any] = json.loads((folder / "reproduce.json").read_text())
    return found


def spread(recorded: dict[str, Any]) -> float:
    """How far apart the recorded numbers are: a check among equal ones would show nothing."""
    key = "logprob" if recorded["kind"] == "policy" else "score"
    return float(np.ptp([case[key] for case in recorded["cases"]]))
