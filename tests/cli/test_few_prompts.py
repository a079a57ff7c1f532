"""Too few prompts for a step of improvement: found before SFT has run, wherever they can be counted by then."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rayalign.config.load import parse_config
from rayalign.preflight import rows
from rayalign.preflight.rows import too_few_prompts
from tests.cli.conftest import Rayalign, Workplace


@pytest.fixture
def irl(workplace: Workplace) -> dict[str, Any]:
    """The `improve` settings of an alternation after SFT, on twelve demonstrations of ten different prompts."""
    prompts = [*range(10), 0, 1]
    text = "".join(json.dumps({"prompt": f"what is {n} ?", "response": "red ."}) + "\n" for n in prompts)
    (workplace.folder / "demos.jsonl").write_text(text)
    improve = {"prompts_per_step": 9}
    workplace.values["stages"].append(
        {
            "kind": "irl",
            "policy": "stage:sft/policy",
            "reward": {"init": "stage:sft/policy"},
            "improve": improve,
            "sampling": {"max_new_tokens": 8},
        }
    )
    return improve


def found(workplace: Workplace) -> str | None:
    """What the check says about the config."""
    config = parse_config(workplace.values)
    return too_few_prompts(config, config.stages[-1])  # type: ignore[arg-type]


@pytest.mark.usefixtures("irl")
def test_nothing_starts(rayalign: Rayalign, workplace: Workplace) -> None:
    outcome = rayalign("train", workplace.write(), "stages.irl.improve.prompts_per_step=11")
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and not workplace.run_folder.exists()
    assert outcome.line == (
        "rayalign: stages.irl.improve.prompts_per_step: a step draws 11 prompts, and data.demonstrations (demos.jsonl) has "
        "9 different prompts to train on; lower it to 9, or give more in data.prompts"
    )


def test_what_is_kept_out_does_not_count(irl: dict[str, Any], workplace: Workplace) -> None:
    """A tenth of the rows is one prompt of ten; rows that are dropped may change which, so then all ten count."""
    assert found(workplace) is None
    irl["prompts_per_step"] = 10
    assert "has 9 different prompts to train on" in str(found(workplace))
    workplace.values["data"]["overlong"] = "drop"
    assert found(workplace) is None
    irl["prompts_per_step"] = 11
    assert "has 10 different" in str(found(workplace))


def test_prompts_of_their_own(irl: dict[str, Any], workplace: Workplace) -> None:
    """Each row is one, up to the source's limit."""
    workplace.values["data"]["prompts"] = {"path": "demos.jsonl"}
    irl["prompts_per_step"] = 12
    assert found(workplace) is None
    workplace.values["data"]["prompts"]["limit"] = 5
    assert "data.prompts (demos.jsonl) has 5 prompts; lower it to 5, or give more in data.prompts" in str(found(workplace))


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ({"path": "stage:world/prompts.jsonl"}, "has 4 prompts; lower it to 4, or raise stages.world.num_prompts"),
        ({"path": "stage:world/prompts.jsonl", "limit": 3}, "has 3 prompts; lower it to 3, or give more in data.prompts"),
        (None, "has 18 different prompts to train on; lower it to 18, or raise stages.world.num_demonstrations"),
    ],
)
def test_a_world_that_is_still_to_be_planted(
    irl: dict[str, Any], workplace: Workplace, prompts: dict[str, Any] | None, words: str
) -> None:
    irl["prompts_per_step"] = 19
    workplace.values["stages"].insert(0, {"kind": "planted", "num_prompts": 4, "num_demonstrations": 20})
    workplace.values["data"] = {"demonstrations": {"path": "stage:world/demonstrations.jsonl"}, "prompts": prompts}
    assert words in str(found(workplace))


def test_what_cannot_be_counted_is_left_to_its_stage(
    irl: dict[str, Any], workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name of the hub, samples of an earlier stage, a file of which only the first rows are read."""
    irl["prompts_per_step"] = 1000
    monkeypatch.setattr(rows, "MAX_ROWS_READ", 12)
    assert found(workplace) is None
    workplace.values["data"]["demonstrations"]["path"] = "some/rows"
    assert found(workplace) is None
    workplace.values["stages"].insert(1, {"kind": "sample", "policy": "stage:sft/policy", "sampling": {"max_new_tokens": 8}})
    workplace.values["data"]["prompts"] = {"path": "stage:sample/samples.jsonl"}
    assert found(workplace) is None
