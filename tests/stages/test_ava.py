"""The ava stage through the command line: preferences, demonstrations, and pairs of stored samples, in one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rayalign.models.rewards import load_reward
from rayalign.models.token_reward import TokenRewardModel
from tests.conftest import DEMO, run_rayalign
from tests.models.tiny import learner_config, load_plain, model_config, plain_logits, random_sequences

NUM_STEPS = 18
FAST = {"batch_size": 24, "optimizer": {"learning_rate": 3e-4}}


@pytest.fixture(scope="module")
def ava_values(planted_base: Path) -> dict[str, Any]:
    """AVA-p on the world's preferences, AVA-d, samples of the reward's own language model, and AVA-p against those."""
    world, base = planted_base / "world", str(planted_base / "base" / "policy")
    values = yaml.safe_load(DEMO.read_text().replace("stage:base/policy", base).replace("stage:world", str(world)))
    values["data"]["preferences"] = {"path": str(world / "preferences.jsonl")}
    values["name"], values["placement"] = "ava", {"backend": "inprocess"}
    pairs = {"better": "demonstrations", "worse": "stage:drawn/samples.jsonl"}
    ava = {"kind": "ava", "init": base, **FAST}
    values["stages"] = [
        {**ava, "epochs": 9, "max_steps": NUM_STEPS, "heldout_frac": 0.4},
        {**ava, "name": "direct", "variant": "demonstrations", "alpha": 50.0, "max_steps": 8, "epochs": 9},
        {
            "kind": "sample", "name": "drawn", "policy": "stage:ava/reward", "num_prompts": 20,
            "prompts": values["data"]["demonstrations"], "sampling": {"max_new_tokens": 26},
        },
        {**ava, "name": "self", "pairs": pairs, "heldout_frac": 0.0, "weights_scale": "one", "pretrained_q": False},
    ]  # fmt: skip
    return values


def train(values: dict[str, Any], folder: Path) -> Any:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({**values, "run_dir": str(folder)}, sort_keys=False))
    return run_rayalign("train", str(config))


@pytest.fixture(scope="module")
def ava_run(ava_values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that run."""
    folder = tmp_path_factory.mktemp("ava")
    done = train(ava_values, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder / "ava" / "said.txt").write_text(done.stderr)
    return folder / "ava"


def report_of(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "report.json").read_text())


def test_the_reward_ranks_pairs_that_it_has_not_seen(ava_run: Path) -> None:
    """200 noisy pairs, 40% of the prompts kept out; the accuracy has its interval, and the run says it."""
    report = report_of(ava_run, "ava")
    assert report["num_steps"] == NUM_STEPS and 60 <= report["num_heldout_pairs"] <= 80 < 100 < report["num_pairs"]
    accuracy = report["heldout_accuracy_sum"]
    assert 0.6 < accuracy["mean"] and accuracy["low"] < accuracy["mean"] < accuracy["high"]
    assert accuracy["num"] == report["heldout_accuracy_last"]["num"] == report["num_heldout_pairs"]
    said = f"ava: ranks {accuracy['mean']:.0%} of {accuracy['num']} held-out pairs as they are"
    assert said in (ava_run / "said.txt").read_text()


def test_what_the_loss_was_made_of(ava_run: Path) -> None:
    """Terms that add up, all there; deviations near the prior's, none on the floor; every step is logged."""
    report = report_of(ava_run, "ava")
    assert report["terms"].keys() == {"likelihood", "negatives", "kl", "td", "contrast"}
    rows = [json.loads(line) for line in (ava_run / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["stage"] == "ava"]
    assert len(steps) == NUM_STEPS
    for row in steps:
        assert row["loss"] == pytest.approx(sum(row[f"{name}_term"] for name in report["terms"]), rel=1e-4)
        assert {"grad_norm", "pair_accuracy", "sigma_min", "sigma_on_floor_frac", "nll_token"} <= row.keys()
    assert steps[-1]["contrast_term"] < steps[0]["contrast_term"]
    last = steps[-(NUM_STEPS // 4) :]
    mean = sum(row["contrast_term"] for row in last) / len(last)
    assert report["terms"]["contrast"] == pytest.approx(mean, rel=1e-4)
    assert 0.1 < report["sigma"]["min"] < report["sigma"]["mean"] < 2 and report["sigma"]["on_floor_frac"] == 0


def test_both_models_are_whole_folders_of_one_step(ava_run: Path) -> None:
    """The reward's language model is the policy's; both have their tokenizer, and only the reward has heads."""
    folders = {name: ava_run / "ava" / name for name in ("reward", "policy")}
    reward = load_reward(str(folders["reward"]), model_config(), learner_config())
    assert isinstance(reward, TokenRewardModel) and reward.settings.reward_weights
    tokens = next(iter(random_sequences(1, seed=0).tokens)) % 40
    logits = [plain_logits(load_plain(str(folder)), tokens) for folder in folders.values()]
    torch.testing.assert_close(*logits, atol=0, rtol=0)
    assert all((folder / "tokenizer.json").is_file() for folder in folders.values())
    assert "rayalign" not in (folders["policy"] / "config.json").read_text()


def test_demonstrations_alone(ava_run: Path) -> None:
    """AVA-d: nothing to rank, so its report has the policy's likelihood of what was kept out."""
    report = report_of(ava_run, "direct")
    assert report["terms"]["negatives"] == report["terms"]["contrast"] == 0 != report["terms"]["td"]
    assert not any(key.startswith("heldout_accuracy") for key in report)
    rows = [json.loads(line) for line in (ava_run / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["stage"] == "direct")
    assert report["heldout_nll_token"]["mean"] < first["nll_token"] and report["num_demonstrations"] > 100


def test_vllm_samples_from_a_rewards_folder_and_those_make_pairs(ava_run: Path) -> None:
    """AfD's pairs: demonstrations over the policy's own samples; with a Q head, and nothing kept out."""
    assert len((ava_run / "drawn" / "samples.jsonl").read_text().splitlines()) == 20
    report = report_of(ava_run, "self")
    assert 1 <= report["num_pairs"] <= 20 and report["num_heldout_pairs"] == 0 and "heldout_nll_token" not in report
    said = (ava_run / "said.txt").read_text()
    assert "self: with pretrained_q false" in said and "use the artifact reward, not policy" in said


def test_what_is_missing_is_told_in_a_line(ava_values: dict[str, Any], tmp_path: Path) -> None:
    data = {key: value for key, value in ava_values["data"].items() if key != "preferences"}
    done = train({**ava_values, "data": data}, tmp_path)
    assert done.returncode == 2 and "data.preferences" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "ava" / "ava").exists()
