"""Hazards: each is told by one line where a config meets it, and configs that are sane meet none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.config.hazards import hazards
from rayalign.config.load import load_config, parse_config
from tests.conftest import DEMO, REPOSITORY

SANE = """\
name: sane
model: {path: base/model}
data:
  demonstrations: {path: demos.jsonl, limit: 200}
  preferences: {path: prefs.jsonl}
stages:
  - {kind: sft}
  - {kind: sample, name: base_samples, policy: base/model}
  - {kind: sample, name: sft_samples, policy: stage:sft/policy}
  - kind: fit_reward
    name: reward
    init: base/model
    pairs: {better: stage:sft_samples/samples.jsonl, worse: stage:base_samples/samples.jsonl}
  - {kind: ava, init: base/model}
  - {kind: irl, policy: stage:sft/policy, reward: {init: base/model}}
  - {kind: rl, policy: stage:sft/policy, reward: stage:reward/reward}
  - {kind: implicit, policy: base/model, beta: 2.0}
"""


def met(*overrides: str, tmp_path: Path) -> list[str]:
    """The lines for SANE with overrides."""
    file = tmp_path / "run.yaml"
    file.write_text(SANE)
    return hazards(load_config(file, overrides))


FAR = "stages.irl.improve.optimizer.learning_rate=1e-3"  # 20 steps: 0.02
HAZARDS: list[tuple[list[str], list[str]]] = [
    (["stages.irl.rounds=3", "stages.irl.reward.start=fresh"], ["stages.irl: ", "fixed reference", "T7b", "start to warm"]),
    (
        ["stages.irl.rounds=3", "stages.irl.improve.reference=round", FAR],
        ["stages.irl.improve: ", "kl_coef) 0.05", "T7a", "0.02, above 0.002"],
    ),
    (["stages.irl.rounds=3", FAR], ["stages.irl.rounds: ", "kl_coef) 0.05", "0.02, above 0.005", "set rounds to 1"]),
    (["stages.irl.sampling.temperature=0.01"], ["stages.irl.sampling.temperature: ", "temperature 0.01", "set it to 1"]),
    (["stages.rl.sampling.temperature=0.2"], ["stages.rl.sampling.temperature: ", "near-greedy"]),
    (["stages.sft_samples.sampling.temperature=0.2"], ["stages.sft_samples.sampling.temperature: ", "later stage learns"]),
    (["stages.rl.improve.advantage=grpo", "stages.rl.improve.kl_in=loss"], ["stages.rl.improve.advantage: ", "T10", "rloo"]),
    (
        ["stages.rl.improve.advantage=reinforce_pp", "stages.rl.improve.kl_in=loss"],
        ["stages.rl.improve.advantage: ", "the batch's deviation"],
    ),
    (
        ["stages.rl.improve={advantage: gae, critic: {}, kl_in: loss}"],
        ["stages.rl.improve.advantage: ", "gae divides rewards by the batch's deviation", "T10"],
    ),
    (["stages.ava.end_term=false"], ["stages.ava.end_term: ", "T29", "true"]),
    (["stages.ava.lambda_td=1"], ["stages.ava.lambda_td: ", "T28", "below 1"]),
    (["stages.ava.contrast_weight=1"], ["stages.ava.contrast_weight: ", "raise it"]),
    (["stages.ava.weights_scale=one"], ["stages.ava.weights_scale: ", "length"]),
    (["stages.reward.pairs.better=demonstrations"], ["stages.reward.pairs: ", "another writer", "T25"]),
    (
        ["stages.reward.pairs={better: demonstrations, worse: stage:sft_samples/samples.jsonl}"],
        ["stages.reward.pairs: ", "a model fitted to them", "gets worse with n", "T25"],
    ),
    (
        ["stages.irl.reward.preference_weight=1", "stages.irl.improve.kl_coef=1"],
        ["stages.irl.reward.preference_temperature: ", "T39", "1 if you mean it"],
    ),
    (
        ["stages.irl.reward={init: a, loss: logistic, divergence: forward_kl, normalise: none}"],
        ["stages.irl.reward.divergence: ", "-h exp(h)", "reverse_kl"],
    ),
    (["stages.implicit.policy=stage:sft/policy"], ["stages.implicit.policy: ", "about 0", "start from the base"]),
    (
        ["stages.implicit.beta=0.1", "stages.implicit.rounds=5", "stages.implicit.optimizer.learning_rate=1e-3"],
        ["stages.implicit.beta: ", "beta 0.1", "T7a", "0.007, above 0.002"],  # ceil(200 / 32) steps a round
    ),
    (
        ["stages.implicit.beta=0.1", "stages.implicit.max_steps=80", "stages.implicit.epochs=20",
         "stages.implicit.optimizer.learning_rate=1e-4"],
        ["stages.implicit.rounds: ", "beta 0.1", "0.008, above 0.005", "likelihood_weight"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), HAZARDS, ids=lambda value: value[0][:60])
def test_a_hazard_is_one_line(overrides: list[str], words: list[str], tmp_path: Path) -> None:
    """It names the key, why, and what to change; and nothing else is told."""
    lines = met(*overrides, tmp_path=tmp_path)
    assert len(lines) == 1, lines
    assert "\n" not in lines[0] and len(lines[0]) < 420 and all(word in lines[0] for word in words), lines[0]


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["stages.irl.rounds=3"],  # small steps
        ["stages.irl.reward.start=fresh"],  # one round
        ["stages.irl.rounds=3", "stages.irl.improve.reference=round", "stages.irl.improve.kl_coef=1", FAR],
        [
            "stages.irl.rounds=3",
            FAR,
            "stages.irl.reward={init: a, demonstration_weight: 0, preference_weight: 1, normalise: none}",
        ],
        ["stages.irl.sampling.temperature=0.7"],
        ["stages.rl.improve.advantage=grpo"],  # with the KL in the reward the Gibbs policy stays a fixed point
        ["stages.rl.improve.advantage=grpo_no_std", "stages.rl.improve.kl_in=loss"],
        ["stages.ava.variant=demonstrations", "stages.ava.contrast_weight=1"],
        ["stages.irl.reward.preference_weight=1", "stages.irl.reward.preference_temperature=1"],
        ["stages.implicit.policy=stage:sft/policy", "stages.implicit.preferences={loss: dpo}"],  # those are news
        ["stages.implicit.policy=stage:sft/policy", "stages.implicit.demonstrations={loss: likelihood}"],
        ["stages.implicit={kind: implicit, policy: stage:sft/policy, demonstrations: null, preferences: {loss: dpo}}"],
        ["stages.implicit.beta=0.1", "stages.implicit.rounds=5"],  # small steps
    ],
    ids=str,
)
def test_no_noise(overrides: list[str], tmp_path: Path) -> None:
    assert met(*overrides, tmp_path=tmp_path) == []


def test_a_policy_two_stages_after_sft_still_knows_them(tmp_path: Path) -> None:
    """A later stage starts from what was fitted; fine-tuning on other rows does not count."""
    line = met("stages.implicit.policy=stage:irl/policy", tmp_path=tmp_path)
    assert line and "stage:irl/policy was already fitted" in line[0]
    assert met("stages.implicit.policy=stage:sft/policy", "stages.sft.data.path=other.jsonl", tmp_path=tmp_path) == []


def test_only_of_the_stages_that_are_asked(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(SANE)
    config = load_config(file, ["stages.ava.end_term=false", "stages.rl.sampling.temperature=0.1"])
    assert len(hazards(config)) == 2
    assert len(hazards(config, [stage for stage in config.stages if stage.name == "rl"])) == 1


def test_what_people_start_from_meets_none() -> None:
    """The demo, the README's config and those in configs/."""
    readme: Any = yaml.safe_load((REPOSITORY / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    assert hazards(parse_config(readme)) == []
    for file in (DEMO, *(REPOSITORY / "configs").glob("*.yaml")):
        assert hazards(load_config(file)) == [], file


MEET = {
    "paper/demonstrations_to_rewards": ["irl"],  # its own beta of .05
    "paper/spin": ["spin"],
    "paper/rlhf": ["grpo"],
    "paper/afd_rewards": ["init_demo", "sft_demo"],  # what the paper warns of
    "paper/afd_adversarial": ["forward_kl"],
    "planted/demonstrations_to_rewards": ["irl"],
    "planted/afd_rewards": ["init_demo", "sft_demo"],
    "planted/afd_adversarial": ["forward_kl"],
    "planted/irft": ["small_1"],  # to be seen breaking
    "planted/aihf_selfplay": ["spin"],  # the control
}


def test_recipes_meet_those_that_are_meant() -> None:
    """And no other."""
    found = {}
    for file in sorted((REPOSITORY / "configs").glob("p*/*.yaml")):
        names = [line.removeprefix("stages.").split(".")[0].split(":")[0] for line in hazards(load_config(file))]
        if names:
            found[f"{file.parent.name}/{file.stem}"] = names
    assert found == MEET
