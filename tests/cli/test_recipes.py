"""`rayalign recipes`: the list, a config to start from, and a name that is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from rayalign.config.load import load_config
from rayalign.config.recipes import all_recipes, find_recipe
from tests.cli.conftest import Rayalign, Workplace


def test_help(rayalign: Rayalign) -> None:
    outcome = rayalign("recipes", "--help")
    assert outcome.code == 0 and outcome.err == ""
    assert all(word in outcome.out for word in ("usage: rayalign recipes", "NAME", "--planted", "exit codes:"))


def test_the_list_tells_name_paper_and_data(rayalign: Rayalign) -> None:
    outcome = rayalign("recipes")
    assert outcome.code == 0 and outcome.err == ""
    for recipe in all_recipes():
        assert recipe.summary in outcome.out and recipe.paper in outcome.out
    assert "needs demonstrations, preferences" in outcome.out


def test_a_recipe_prints_the_config_to_start_from(rayalign: Rayalign, tmp_path: Path) -> None:
    """With its comments, which say where each value is from; and it is a config."""
    outcome = rayalign("recipes", "spin")
    file = tmp_path / "my.yaml"
    file.write_text(outcome.out)
    assert "# [code]" in outcome.out
    assert load_config(file) == load_config(find_recipe("spin").file("paper"))


def test_the_planted_one_is_whole(rayalign: Rayalign, tmp_path: Path) -> None:
    """It extends nothing: what is printed runs from anywhere."""
    outcome = rayalign("recipes", "spin", "--planted")
    file = tmp_path / "my.yaml"
    file.write_text(outcome.out)
    assert "extends" not in outcome.out
    assert load_config(file) == load_config(find_recipe("spin").file("planted"))


def test_no_such_recipe(rayalign: Rayalign) -> None:
    outcome = rayalign("recipes", "aihf_slefplay")
    assert outcome.code == 2 and outcome.out == ""
    assert outcome.line == "rayalign: 'aihf_slefplay' is no recipe; did you mean aihf_selfplay?"
    assert "recipes NAME --planted" in rayalign("recipes", "--planted").line


def test_doctor_tells_hazards(rayalign: Rayalign, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = " ".join(rayalign("doctor", find_recipe("aihf_selfplay").file("planted")).out.split())
    assert "hazard stages.spin.policy: stage:sft/policy was already fitted to these demonstrations" in text
    assert "hazard" not in rayalign("doctor").out


def test_a_run_tells_hazards_first(rayalign: Rayalign, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the stages that are still to run."""
    asked = []
    monkeypatch.setattr("rayalign.run.hazards", lambda config, stages: asked.extend(stages) or ["stages.sft: look out"])
    outcome = rayalign("train", workplace.write())
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines()[0] == "warning: stages.sft: look out"
    assert [stage.name for stage in asked] == ["sft"]
