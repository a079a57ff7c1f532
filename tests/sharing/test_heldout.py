"""An export gives away no row that was trained on: its examples are of prompts that were held out, else fixed texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayalign.config.load import load_config
from rayalign.sharing.found import SharedRun
from rayalign.sharing.heldout import heldout_examples
from tests.sharing.runs import EVALUATE, EXAMPLES, IRL, finish, make_run

RESULTS = {"examples": EXAMPLES}


def shown(root: Path, prompts: Any, *, sft: Any = None, **keys: Any) -> list[Any]:
    """The examples of a run whose evaluate stage has these prompts."""
    evaluate = {key: value for key, value in (EVALUATE | {"prompts": prompts}).items() if value is not None}
    first = {"kind": "sft"} | ({"data": sft} if sft else {})
    run = make_run(root / "runs" / "tiny", [first, IRL, evaluate], **keys)
    (finish(run, "evaluate") / "results.json").write_text("{}")
    return list(heldout_examples(SharedRun(run, load_config(run / "config.yaml"), []), RESULTS))


def test_heldout_prompts_may_be_shown(tmp_path: Path) -> None:
    assert shown(tmp_path, {"path": "owner/heldout"}) == EXAMPLES


def test_another_split_may_be_shown(tmp_path: Path) -> None:
    assert shown(tmp_path, {"path": "owner/prompts", "split": "test"}) == EXAMPLES


@pytest.mark.parametrize(
    "prompts",
    [
        None,  # data.prompts
        {"path": "owner/prompts", "limit": 3},
        {"path": "ROOT/runs/demos.jsonl"},
        {"path": "ROOT/runs/../runs/demos.jsonl", "split": "test"},  # a file has no splits
        {"path": "ROOT/rows/train.jsonl"},  # in a folder that sft reads
    ],
)
def test_prompts_that_a_stage_trains_on_are_not_shown(tmp_path: Path, prompts: Any) -> None:
    if prompts:
        prompts = prompts | {"path": prompts["path"].replace("ROOT", str(tmp_path))}
    assert shown(tmp_path, prompts, sft={"path": str(tmp_path / "rows")}) == []
