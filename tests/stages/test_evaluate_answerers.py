"""What answers in an evaluation: a model, the best of n by a reward, or a policy carried beyond itself, all alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rayalign.config.load import parse_config
from rayalign.errors import UserError
from rayalign.preflight.check import check_run
from tests.models.tiny import save_tiny
from tests.stages.conftest import NUM_PER_PROMPT, NUM_PROMPTS, rows_of

NAMES = ["sft", "raft", "best", "beyond", "itself"]


@pytest.fixture(scope="module")
def results(selection: Path) -> dict[str, Any]:
    """results.json."""
    return json.loads((selection / "evaluate" / "results.json").read_text())


def test_all_are_measured_alike(results: dict[str, Any], selection: Path) -> None:
    assert list(results["models"]) == NAMES
    for cells in results["models"].values():
        assert list(cells) == ["1"]
        for cell in cells.values():
            assert cell["golden"]["num"] == cell["reward"]["num"] == cell["length"]["num"] == NUM_PROMPTS
            assert cell["rank_accuracy"]["num"] > 0 and 0 <= cell["parsed_frac"] <= 1
    assert all(set(example["answers"]) == set(NAMES) for example in results["examples"])
    rows = rows_of(selection / "evaluate" / "samples.jsonl")
    assert len(rows) == len(NAMES) * NUM_PROMPTS * NUM_PER_PROMPT
    prompts = {name: [row["prompt"] for row in rows if row["model"] == name] for name in NAMES}
    assert all(prompts[name] == prompts["sft"] for name in NAMES)


def test_choosing_raises_the_reward_that_chooses(results: dict[str, Any]) -> None:
    models = results["models"]
    assert models["best"]["1"]["reward"]["low"] > models["sft"]["1"]["reward"]["high"]


def test_extrapolation_goes_beyond_and_power_1_does_not(results: dict[str, Any]) -> None:
    """Power 2 beats the policy in both rewards; power 1 is the policy, drawn by another engine: the intervals meet."""
    models = results["models"]
    for measure in ("golden", "reward"):
        assert models["beyond"]["1"][measure]["low"] > models["sft"]["1"][measure]["high"]
        assert models["itself"]["1"][measure]["low"] < models["sft"]["1"][measure]["high"]
        assert models["itself"]["1"][measure]["high"] > models["sft"]["1"][measure]["low"]


def config_of(**models: Any) -> Any:
    """A config of one evaluation."""
    stage = {"kind": "evaluate", "models": models}
    return parse_config({"name": "x", "model": {"path": "m"}, "data": {"prompts": {"path": "p.jsonl"}}, "stages": [stage]})


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"policy": "a", "reward": "b"}, "stages.evaluate.models.x.best_of: required, but not set"),
        ({"policy": "a", "reward": "b", "best_of": 20000}, "stages.evaluate.models.x.best_of: .*16384"),
        ({"policy": "a", "power": 2}, "stages.evaluate.models.x.reference: required, but not set"),
        ({"policy": "a", "reference": "b", "min_prob": 1.0}, "stages.evaluate.models.x.min_prob: .*less than 1"),
        ({"policy": "a", "reference": "b", "powr": 2}, "stages.evaluate.models.x.powr: unknown key"),
        (5, "stages.evaluate.models.x: expected text"),
        ({"policy": "a", "reward": "stage:rft/reward", "best_of": 4}, "models.x.reward: stage:rft/reward names no earlier"),
    ],
)
def test_a_slip_in_the_config_is_told_of_the_one_that_was_meant(model: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config_of(x=model)


def test_a_reference_of_other_tokens(selection_values: dict[str, Any], planted_base: Path, tmp_path: Path) -> None:
    """Told before anything starts."""
    other = save_tiny(tmp_path / "other", vocab_size=50)
    model = {"policy": str(planted_base / "base" / "policy"), "reference": other}
    stage = selection_values["stages"][-1] | {"reward": None, "models": {"x": model}}
    config = parse_config({**selection_values, "run_dir": str(tmp_path), "stages": [stage]})
    with pytest.raises(UserError, match="models.x.reference: .*other: knows 50 tokens, and the run's tokenizer"):
        check_run(config, config.stages)
