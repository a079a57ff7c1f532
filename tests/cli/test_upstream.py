"""A finished stage was made from what earlier stages left: with another one of these it is not passed off as its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rayalign.api import FunctionRewardFactory
from rayalign.config.load import parse_config
from rayalign.run import _own_parts, _settings, built_in
from rayalign.stages.context import Components
from tests.cli.conftest import ROWS, Rayalign, Workplace

TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
    "num_attention_heads": 1, "num_key_value_heads": 1, "max_position_embeddings": 64,
}  # fmt: skip
NAMES = ("world", "first", "second", "alone")


@pytest.fixture
def chain(workplace: Workplace, parts: Path) -> Workplace:
    """`second` starts from `first`, which learns the texts of `world`; `alone` knows none of them."""
    (workplace.folder / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    sft = {"kind": "sft", "max_steps": 1, "batch_size": 4}
    workplace.values |= {
        "model": {**workplace.values["model"], "max_length": 48},
        "stages": [
            {"kind": "planted", "name": "world", "num_pretrain": 20, "num_demonstrations": 4, "num_preferences": 4,
             "num_prompts": 4, "num_eval_prompts": 4},
            {**sft, "name": "first", "scratch": TINY, "data": {"path": "stage:world/pretrain.jsonl"}},
            {**sft, "name": "second", "policy": "stage:first/policy", "data": {"path": "own.jsonl"}},
            {**sft, "name": "alone", "data": {"path": "own.jsonl"}},
        ],
    }  # fmt: skip
    return workplace


def made(run_folder: Path) -> dict[str, int]:
    """When each stage was finished."""
    return {name: (run_folder / name / "done.json").stat().st_mtime_ns for name in NAMES}


def test_what_is_made_from_a_changed_stage_is_refused(rayalign: Rayalign, chain: Workplace) -> None:
    """Stage by stage down the line, each naming what changed; nothing is run or removed before that; others stay."""
    config = chain.write()
    assert rayalign("train", config).code == 0
    before = made(chain.run_folder)

    outcome = rayalign("train", config, "stages.first.max_steps=2")
    assert outcome.code == 2
    assert "stage first finished here with another max_steps (1, now 2); set name= for a new run" in outcome.line
    assert str(chain.run_folder / "first") in outcome.line  # what to remove

    shutil.rmtree(chain.run_folder / "first")
    outcome = rayalign("train", config, "stages.first.max_steps=2")
    assert outcome.code == 2
    assert "stage second finished here with another input stage:first; " in outcome.line
    assert not (chain.run_folder / "first").exists()  # told before anything runs

    assert rayalign("train", config, "stages.first.max_steps=3", "name=other").code == 0  # the way out that is named
    shutil.rmtree(chain.run_folder / "second")
    outcome = rayalign("train", config, "stages.first.max_steps=2")
    assert outcome.code == 0
    for name, kept in {"world": True, "first": False, "second": False, "alone": True}.items():
        assert (f"{name}: finished before, kept" in outcome.err) is kept
        assert (made(chain.run_folder)[name] == before[name]) is kept


def test_a_change_is_seen_over_several_stages(rayalign: Rayalign, chain: Workplace) -> None:
    """The world's texts reach `second` through `first` alone, and it is refused all the same."""
    config = chain.write()
    assert rayalign("train", config).code == 0
    outcome = rayalign("train", config, "stages.world.seed=1")
    assert outcome.code == 2 and "stage world finished here with another seed (0, now 1); " in outcome.line
    shutil.rmtree(chain.run_folder / "world")
    outcome = rayalign("train", config, "stages.world.seed=1")
    assert outcome.code == 2 and "stage first finished here with another input stage:world; " in outcome.line
    shutil.rmtree(chain.run_folder / "first")
    outcome = rayalign("train", config, "stages.world.seed=1")
    assert outcome.code == 2 and "stage second finished here with another input stage:first; " in outcome.line
    assert rayalign("train", config).code == 0  # made again as they were, `second` is theirs still
    assert not list(chain.run_folder.rglob("*.part"))


def test_what_only_changes_speed_changes_nothing(rayalign: Rayalign, chain: Workplace) -> None:
    """Threads, micro-batches, memory, and what a run tells; also the order of stages, and a stage that is added."""
    config = chain.write()
    assert rayalign("train", config).code == 0
    before = made(chain.run_folder)
    for override in (
        "placement.policy.cpus=2",
        "placement.kv_cache_gib=0.1",
        "placement.deadlines.call_s=60",
        "learner={zero_stage: 2, micro_batch_tokens: 64, packing: true, gradient_checkpointing: true}",
        "model.attention=eager",
        "telemetry.actor_logs=true",
    ):
        outcome = rayalign("train", config, override)
        assert outcome.code == 0 and outcome.err.count("finished before, kept") == 4, (override, outcome.err)
    stages = chain.values["stages"]
    chain.values["stages"] = [stages[3], *stages[:3], {**stages[3], "name": "more"}]
    outcome = rayalign("train", chain.write())
    assert outcome.code == 0 and outcome.err.count("finished before, kept") == 4, outcome.err
    assert made(chain.run_folder) == before
    assert (chain.run_folder / "more" / "done.json").exists()


def test_a_held_out_file_is_another_split(rayalign: Rayalign, workplace: Workplace) -> None:
    """Beside a held-out file SFT learns from all demonstrations, without one from a share of them."""
    for name in ("demos", "held"):
        (workplace.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    config = workplace.write()
    assert rayalign("train", config).code == 0
    outcome = rayalign("train", config, "data.heldout_demonstrations={path: held.jsonl}")
    assert outcome.code == 2 and "another data.heldout_demonstrations" in outcome.line


@pytest.mark.parametrize(("overlong", "matters"), [("error", False), ("drop", True), ("truncate", True)])
def test_room_for_answers_matters_where_prompts_are_cut(workplace: Workplace, overlong: str, matters: bool) -> None:
    """The longest answer of an irl stage decides how all stages cut their prompts."""
    found = []
    for room in (8, 20):
        irl = {"kind": "irl", "policy": "stage:sft/policy", "reward": {"init": "stage:sft/policy"},
               "sampling": {"max_new_tokens": room}}  # fmt: skip
        data = {**workplace.values["data"], "overlong": overlong}
        config = parse_config({**workplace.values, "data": data, "stages": [*workplace.values["stages"], irl]})
        found.append(_settings(config, config.stages[0], {}))
    assert (found[0] != found[1]) is matters


def test_another_reward_of_ones_own_is_another_run(workplace: Workplace) -> None:
    """By its name and its code; stages that do not use it are kept."""
    irl = {"kind": "irl", "policy": "stage:sft/policy", "reward": {"init": "stage:sft/policy"},
           "sampling": {"max_new_tokens": 8}}  # fmt: skip
    config = parse_config({**workplace.values, "stages": [*workplace.values["stages"], irl]})
    ours = built_in()

    def length(prompts: list[str], responses: list[str]) -> list[float]:
        return [float(len(response)) for response in responses]

    def settings(reward: Any) -> list[dict[str, Any]]:
        own = _own_parts(Components(ours.rollout, reward))
        return [_settings(config, stage, own) for stage in config.stages]

    plain, same, again = (settings(r) for r in (ours.reward, *[FunctionRewardFactory(length) for _ in range(2)]))
    other = settings(FunctionRewardFactory(lambda prompts, responses: [0.0 for _ in responses]))
    assert same == again
    assert plain[0] == same[0] == other[0]
    assert plain[1] != same[1] != other[1]
