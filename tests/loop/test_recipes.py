"""Every planted recipe's stages run for real, cut down to two steps each: in one process, on the small base model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.config.load import dump_config, load_config
from rayalign.config.run import RunConfig
from tests.conftest import REPOSITORY, run_rayalign

PLANTED = REPOSITORY / "configs" / "planted"
RECIPES = sorted(path.stem for path in PLANTED.glob("[!_]*.yaml"))
WORLD = ("world", "pretrain", "base")  # made once, by a fixture
LIMITS = {"num_prompts": 6, "num_per_prompt": 2, "max_steps": 2, "epochs": 1, "batch_size": 4, "probe_size": 4}
NO_OTHER = {"num_examples": 0, "temperatures": [1.0]}


NUM_RUNS = 4  # one start of vLLM serves a quarter of the recipes


@pytest.fixture(scope="module", params=range(NUM_RUNS))
def some(request: pytest.FixtureRequest, planted_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the stages of some recipes, each under its recipe's name."""
    folder = tmp_path_factory.mktemp("recipes")
    configs = {name: _of(name, planted_base) for name in RECIPES[request.param :: NUM_RUNS]}
    stages = [stage for name, values in configs.items() for stage in _renamed(name, values["stages"])]
    shared = _of("aihf", planted_base)  # it names all the data there is
    shared |= {"name": "all", "run_dir": str(folder), "stages": stages, "placement": {"backend": "inprocess"}}
    file = folder / "all.yaml"
    file.write_text(yaml.safe_dump(shared))
    done = run_rayalign("train", str(file))
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "all"


def test_each_stage_of_a_recipe_leaves_its_artifacts_and_finite_numbers(some: Path) -> None:
    rows = [json.loads(line) for line in (some / "metrics.jsonl").read_text().splitlines()]
    stages = load_config(some / "config.yaml").stages
    assert len(stages) > 10
    for stage in stages:
        name = stage.name
        missing = [artifact for artifact in stage.artifacts() if not (some / name / artifact).exists()]
        assert not missing, f"{name} left no {missing}"
        numbers = [value for row in rows if row["stage"] == name for value in row.values() if isinstance(value, float)]
        assert all(math.isfinite(value) for value in numbers), name
        assert numbers or stage.kind in ("sample", "best_of_n", "log_ratio", "evaluate"), f"{name} logged nothing"


def _of(recipe: str, base: Path) -> dict[str, Any]:
    """A recipe's config as plain values, on the world and the base model that are there."""
    config: RunConfig = load_config(PLANTED / f"{recipe}.yaml")
    text = dump_config(config).replace("stage:base/policy", str(base / "base" / "policy"))
    values = yaml.safe_load(text.replace("stage:world", str(base / "world")))
    values["stages"] = [_cut(stage) for stage in values["stages"] if stage["name"] not in WORLD]
    return values


def _cut(stage: dict[str, Any]) -> dict[str, Any]:
    """The same stage with two steps, on a few prompts."""
    cut = {**stage, **{key: value for key, value in (LIMITS | NO_OTHER).items() if key in stage}}
    if stage["kind"] == "implicit" and (stage["demonstrations"] or {}).get("loss") != "dft":
        cut.pop("num_per_prompt", None)
    if "n" in stage:
        cut["n"] = [1, 4]
    for name, model in stage.get("models", {}).items():
        if isinstance(model, dict) and "best_of" in model:
            cut["models"] = {**cut["models"], name: {**model, "best_of": 2}}
    if "rounds" in stage:
        cut["rounds"] = min(stage["rounds"], 2)
    for key in ("beta", "learning_rates"):
        if isinstance(stage.get(key), list):
            cut[key] = stage[key][: cut["rounds"]]
    if stage["kind"] == "irl":
        cut["reward"] = {**stage["reward"], "steps": 2, "batch_size": 4, "num_prompts": 8, "num_per_prompt": 1}
    if "improve" in stage:
        alone = stage["improve"]["samples_per_prompt"] == 1
        cut["improve"] = {**stage["improve"], "steps": 2, "prompts_per_step": 4, "samples_per_prompt": 1 if alone else 2}
    return cut


def _renamed(recipe: str, stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Names and references that are the recipe's own."""
    text = yaml.safe_dump(stages)
    for stage in stages:
        text = text.replace(f"stage:{stage['name']}/", f"stage:{_name(recipe, stage['name'])}/")
    renamed = yaml.safe_load(text)
    return [{**stage, "name": _name(recipe, stage["name"])} for stage in renamed]


def _name(recipe: str, stage: str) -> str:
    return f"{recipe}-{stage}"
