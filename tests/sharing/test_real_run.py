"""A run that was really trained: its config, its stages' marks and its models are what an export reads."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard

from rayalign.config.load import load_config
from rayalign.config.stages import PlantedStage
from rayalign.sharing.export import export
from tests.sharing.runs import record, spread


def test_a_trained_base_model(planted_base: Path, tmp_path: Path) -> None:
    """Stages `planted` and `sft`: the policy, and the data of the world that it was fitted to, counted."""
    found = export(planted_base, tmp_path / "out", stage="base")
    assert {role: one.stage for role, one in found.items()} == {"policy": "base"}
    assert spread(record(tmp_path / "out" / "policy")) > 1
    card = ModelCard.load(tmp_path / "out" / "policy" / "README.md")
    assert card.data.base_model is None and "wrote a synthetic text world" in card.content
    assert "by maximum likelihood" in card.content and "arXiv" not in card.content
    world = load_config(planted_base / "config.yaml").stages[0]
    assert isinstance(world, PlantedStage)
    assert f"| demonstrations | pretrain.jsonl | {world.num_pretrain} |" in card.content
