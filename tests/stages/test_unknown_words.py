"""Text that is nothing to the run's tokenizer is told before a stage learns from it."""

from __future__ import annotations

import io
import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rayalign.actors.fleet import LocalFleet
from rayalign.config.load import parse_config
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.planted.world import PlantedWorld
from rayalign.stages.context import Components, RunContext
from rayalign.stages.inputs import load_preferences, load_prompts, sequences_of
from rayalign.telemetry.progress import Progress
from rayalign.telemetry.tracker import Tracker

ENGLISH = {"prompt": "What is the capital of France?", "chosen": "Paris, on the Seine.", "rejected": "Lyon, I believe."}


def _never(_setup: Any) -> Any:
    raise AssertionError("reading data starts no worker")


def told(tmp_path: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    """What a run says of a file of these rows, with the planted world's tokenizer."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tokenizer(tmp_path / "tokenizer")
    values = {
        "name": "words",
        "run_dir": str(tmp_path),
        "model": {"path": "unused", "tokenizer": str(tmp_path / "tokenizer"), "max_length": 96},
        "data": {kind: {"path": str(file)}},
        "placement": {"backend": "inprocess"},
        "telemetry": {"tensorboard": False},
        "stages": [{"kind": "sft"}],
    }
    config, said = parse_config(values), io.StringIO()
    parts = Components(rollout=_never, reward=_never)
    with (
        Tracker(tmp_path / "tracked", config.telemetry, run_name="words", resolved_config={}) as tracker,
        closing(LocalFleet(config.placement)) as fleet,
    ):
        context = RunContext(config, tmp_path / "words", fleet, parts, tracker, Progress(True, said))
        source = getattr(config.data, kind)
        if kind == "prompts":
            load_prompts(context, source, room=8)
        else:
            {"demonstrations": sequences_of, "preferences": load_preferences}[kind](context, source)
    return said.getvalue()


@pytest.mark.parametrize("kind", ["demonstrations", "prompts", "preferences"])
def test_words_of_another_language(tmp_path: Path, kind: str) -> None:
    row = {"prompt": ENGLISH["prompt"]}
    row |= {"demonstrations": {"response": ENGLISH["chosen"]}, "preferences": ENGLISH, "prompts": {}}[kind]
    line = " ".join(told(tmp_path, kind, [row] * 3).split())
    assert "of its tokens are unknown to the tokenizer" in line and f"warning: {tmp_path / 'rows.jsonl'}: " in line


def test_its_own_words(tmp_path: Path) -> None:
    world = PlantedWorld(0, "low")
    assert told(tmp_path, "demonstrations", world.demonstrations(world.cast.expert, 6)) == ""
