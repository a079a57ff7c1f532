"""Supervised fine-tuning through the command line: streamed data, and LoRA on top of a base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from tests.conftest import run_rayalign


@pytest.fixture
def sft_values(loop_values: dict[str, Any]) -> dict[str, Any]:
    """SFT alone, in process."""
    loop_values["placement"] = {"backend": "inprocess"}
    loop_values["stages"] = [stage for stage in loop_values["stages"] if stage["kind"] == "sft"]
    return loop_values


def train(values: dict[str, Any], folder: Path) -> Any:
    """Runs a config; returns what the command said."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return run_rayalign("train", str(path))


def test_data_that_does_not_fit_in_memory_is_read_as_it_goes(sft_values: dict[str, Any], tmp_path: Path) -> None:
    """Five steps of 32 rows never reach a fault in row 12,001; without max_steps a stream has no end."""
    rows = Path(sft_values["data"]["demonstrations"]["path"]).read_text().splitlines()
    source = tmp_path / "stream.jsonl"
    source.write_text("\n".join([*rows[:200] * 60, "{not JSON"]) + "\n")  # the check before a run reads 10,000 rows
    sft_values["data"]["demonstrations"] = {"path": str(source), "streaming": True}
    done = train(sft_values, tmp_path)
    assert done.returncode == 2 and "stages.sft.max_steps: streaming data has no known length; set it" in done.stderr
    sft_values["stages"][0]["max_steps"] = 5
    done = train(sft_values, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    logged = [json.loads(line) for line in (tmp_path / "loop" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["nll_token"] for row in logged]
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_lora_trains_and_saves_merged_weights(sft_values: dict[str, Any], tmp_path: Path) -> None:
    """The saved folder has the base's names, and only the adapted layers differ from it."""
    sft_values["model"] |= {"lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}}
    done = train(sft_values, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    before = load_file(Path(sft_values["stages"][0]["policy"]) / "model.safetensors")
    after = load_file(tmp_path / "loop" / "sft" / "policy" / "model.safetensors")
    changed = {name for name in before if not before[name].equal(after[name])}
    assert before.keys() == after.keys()
    assert changed and all("q_proj" in name or "v_proj" in name for name in changed)
