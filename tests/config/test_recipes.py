"""The recipes: each in two sizes, planned on a declared cluster, with what it lacks said before anything starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from rayalign.actors.plan import check_fits, make_plan
from rayalign.config.load import load_config
from rayalign.config.loops import ImplicitStage, IrlStage, RlStage
from rayalign.config.recipes import CONFIGS, HEADER, Recipe, all_recipes, find_recipe
from rayalign.config.run import RunConfig
from rayalign.errors import ConfigError, UserError
from rayalign.preflight.check import check_run, examine_run, needs_of
from tests.conftest import DEMO, REPOSITORY

RECIPES = all_recipes()
NAMES = {
    "demonstrations_to_rewards", "afd", "afd_rewards", "afd_adversarial", "extrapolate", "rft", "irft", "spin", "ava_d",
    "ava_p", "aihf", "aihf_direct", "aihf_selfplay", "sft", "rlhf", "dpo", "ipo", "best_of_n", "raft", "dft", "gsil",
}  # fmt: skip
CLUSTER = [{"CPU": 64.0, "GPU": 8.0}] * 2
LEARNED_FROM = ("demonstrations", "preferences", "prompts")


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.name)
def recipe(request: pytest.FixtureRequest) -> Recipe:
    """Each of them."""
    return request.param


def stages_of(name: str, size: str = "planted") -> dict[str, object]:
    """The stages of a recipe, by name."""
    return {stage.name: stage for stage in load_config(find_recipe(name).file(size)).stages}  # type: ignore[arg-type]


def test_all_are_there() -> None:
    assert {recipe.name for recipe in RECIPES} == NAMES
    planted = {file.stem for file in (CONFIGS / "planted").glob("[!_]*.yaml")}
    assert planted == NAMES


def test_both_sizes_say_the_same_of_themselves(recipe: Recipe) -> None:
    """What it is, where it is from, what it needs: one line each, which are the first ones."""
    told = [recipe.file(size).read_text().splitlines()[: len(HEADER)] for size in ("paper", "planted")]
    assert told[0] == told[1]
    assert [line.split(":")[0] for line in told[0]] == [f"# {key}" for key in HEADER]
    assert len(recipe.summary) <= 105


def test_it_plans_on_a_declared_cluster(recipe: Recipe) -> None:
    """The paper's size on nodes of eight GPUs, the planted one on two cores."""
    paper, planted = load_config(recipe.file("paper")), load_config(recipe.file("planted"))
    plan = make_plan(paper.placement, max_staleness=paper.max_staleness)
    check_fits(plan, CLUSTER)
    assert plan.groups["policy"].gpus and plan.groups["rollout"].gpus
    check_fits(make_plan(planted.placement, max_staleness=planted.max_staleness), [{"CPU": 2.0, "GPU": 0.0}])


def test_every_value_of_a_paper_has_its_source(recipe: Recipe) -> None:
    """Numbers that decide a result carry one of the tags that the file's legend explains."""
    keys = {"rounds", "epochs", "batch_size", "beta", "kl_coef", "num_prompts", "prompts_per_step", "samples_per_prompt"}
    text = recipe.file("paper").read_text()
    section, untold = "", []
    for line in text.splitlines():
        section = line if line.lstrip().startswith("#") else section  # a comment above tells for a block of ours
        section = "" if not line.strip() else section
        key = line.strip().removeprefix("- ").partition(":")[0]
        tagged = any(f"[{tag}]" in line or f"[{tag}]" in section for tag in ("paper", "code", "report", "memory", "ours"))
        if key in keys and not tagged and "[ours]" not in _block(text, line):
            untold.append(line)
    assert not untold


def _block(text: str, line: str) -> str:
    """The paragraph that a line stands in."""
    return next(part for part in text.split("\n\n") if line in part.splitlines())


def test_the_header_names_the_data_that_is_needed(recipe: Recipe) -> None:
    """No more than the config sets, and each of them by some stage."""
    config = load_config(recipe.file("paper"))
    needed = {key for stage in config.stages for key in needs_of(config, stage)}
    assert set(recipe.data) == {kind for kind in LEARNED_FROM if getattr(config.data, kind) is not None}
    assert {f"data.{kind}" for kind in recipe.data} <= needed


@pytest.mark.parametrize(("name", "kind"), [(recipe.name, kind) for recipe in RECIPES for kind in recipe.data])
def test_lacking_data_is_said_first(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line: which stage needs it, and the key to set."""
    monkeypatch.chdir(tmp_path)
    config = without(load_config(find_recipe(name).file("paper")), kind)
    (tmp_path / "data").mkdir()
    row = '{"prompt": "a", "response": "b", "chosen": "b", "rejected": "c"}\n'
    for file in files_of(config):
        (tmp_path / file).write_text(row)
    with pytest.raises(UserError) as caught:
        check_run(config, config.stages)
    line = str(caught.value)
    assert f"needs {kind}: set data.{kind}" in line and "\n" not in line, line


def test_aihf_needs_preferences() -> None:
    """The issue's own words."""
    config = without(load_config(find_recipe("aihf").file("paper")), "preferences")
    lines = [str(finding) for finding in examine_run(config, config.stages)]
    assert "data.preferences: stage aihf needs preferences: set data.preferences" in lines


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "no row can be used (0 rows used, 1 left out (1 x chosen and"),
        ({"chosen": "b", "rejected": "c"}, "'chosen' is a plain text, but the row has no prompt; accepted: {prompt, chosen"),
        ({"prompt": None, "chosen": "b", "rejected": "c"}, "but the row has no prompt"),
        ({"prompt": " ", "chosen": "b", "rejected": "c"}, "1 x empty prompt"),
        ({"prompt": "a", "response": "b"}, "no preference in a row with the columns prompt, response; accepted:"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_preferences_of_no_use_are_said_first(row: dict[str, str | None], words: str, tmp_path: Path) -> None:
    """Equal sides, no prompt, no pair: one line before anything starts, which names the file and the row."""
    file = tmp_path / "preferences.jsonl"
    file.write_text(json.dumps(row) + "\n")
    config = load_config(find_recipe("dpo").file("paper"), [f"data.preferences.path={file}"])
    (line,) = [f.text for f in examine_run(config, config.stages) if f.key == "data.preferences"]
    assert words in line and str(file) in line and "\n" not in line, line


def test_some_preferences_of_no_use_are_left_out(tmp_path: Path) -> None:
    """The others are used."""
    file = tmp_path / "preferences.jsonl"
    rows = [{"prompt": "a", "chosen": "b", "rejected": other} for other in ("b", "c")]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_config(find_recipe("dpo").file("paper"), [f"data.preferences.path={file}"])
    (finding,) = [f for f in examine_run(config, config.stages) if f.key == "data.preferences"]
    assert finding.state == "ok" and "(1 preferences)" in finding.text


def without(config: RunConfig, kind: str) -> RunConfig:
    """The config with one kind of data removed."""
    return config.model_copy(update={"data": config.data.model_copy(update={kind: None})})


def files_of(config: RunConfig) -> set[str]:
    """The placeholders that a config names."""
    locations = [needed.location for stage in config.stages for needed in needs_of(config, stage).values()]
    return {location for location in locations if location and location.startswith("data/")}


def test_the_planted_world_is_the_demos() -> None:
    """The same world and base model in all, so that one cached base serves them."""
    demo = {stage["name"]: stage for stage in yaml.safe_load(DEMO.read_text())["stages"]}
    demo_config = load_config(DEMO)
    for recipe in RECIPES:
        config = load_config(recipe.file("planted"))
        assert (config.model, config.learner, config.seed) == (demo_config.model, demo_config.learner, demo_config.seed)
        stages = {stage.name: stage for stage in config.stages}
        assert stages["pretrain"] == next(stage for stage in demo_config.stages if stage.name == "pretrain"), recipe.name
        if recipe.name != "afd_rewards":  # whose world is another one
            assert stages["base"] == next(stage for stage in demo_config.stages if stage.name == "base"), recipe.name
    assert {"world", "pretrain", "base"} <= set(demo)


def test_what_the_recipes_must_have() -> None:
    """The table of the issue, as far as a config shows it."""
    first = stages_of("demonstrations_to_rewards", "paper")["irl"]
    assert isinstance(first, IrlStage) and first.improve.critic and first.improve.critic.init is None
    assert (first.reward.replay, first.reward.normalise) == ("cumulative", "demonstrations")
    assert first.improve.reference == "round"
    assert first.improve.missing_end_score is not None
    adversarial = [s.reward.divergence for s in stages_of("afd_adversarial").values() if isinstance(s, IrlStage)]
    assert adversarial[:3] == ["reverse_kl", "jensen_shannon", "forward_kl"]
    assert {"init_sft", "init_demo", "sft_demo", "preference", "log_ratio"} <= stages_of("afd_rewards").keys()
    assert {"best_of_n", "raft", "rl", "dpo"} <= stages_of("afd").keys()
    rl = [s.improve.advantage for s in stages_of("rlhf").values() if isinstance(s, RlStage)]
    assert rl == ["gae", "rloo", "grpo", "grpo_no_std", "reinforce_pp"]
    spin = stages_of("spin", "paper")["spin"]
    assert isinstance(spin, ImplicitStage) and spin.beta == [0.1, 0.1, 0.1, 5.0] and spin.keep_previous
    rounds = {s.name: s.rounds for s in stages_of("irft").values() if isinstance(s, ImplicitStage)}
    assert {1, 5} <= set(rounds.values())
    assert any(isinstance(s, ImplicitStage) and s.on_policy for s in stages_of("irft").values())
    for name in ("ava_d", "ava_p"):
        dense = [s for s in stages_of(name).values() if isinstance(s, RlStage) and s.improve.dense]
        assert dense and {"reward", "direct"} <= stages_of(name).keys()


def test_the_page_has_a_row_for_each() -> None:
    """docs/recipes.md: the first column holds every name once, and the data is what the config says."""
    table = (REPOSITORY / "docs" / "recipes.md").read_text().split("| recipe |")[1].split("\n\n")[0]
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    told = {name: row[3] for row in rows for name in row[0].removeprefix("| ").split(", ")}
    assert told == {recipe.name: ", ".join(recipe.data) for recipe in RECIPES}


def test_an_unknown_recipe() -> None:
    with pytest.raises(ConfigError, match="'rtf' is no recipe; did you mean rft?"):
        find_recipe("rtf")
    with pytest.raises(ConfigError, match="`rayalign recipes` lists all"):
        find_recipe("xyzzy")


def test_a_wheel_holds_them(tmp_path: Path) -> None:
    """`rayalign recipes`, `rayalign demo` and the templates work where rayalign is installed, not only in a checkout."""
    pytest.importorskip("setuptools")
    source, out = tmp_path / "source", tmp_path / "wheel"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("rayalign", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), "."]
    done = subprocess.run(build, cwd=source, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = out.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {f"rayalign/recipes/{size}/{name}.yaml" for size in ("paper", "planted") for name in NAMES}
    wanted |= {"rayalign/planted/demo.yaml", "rayalign/recipes/planted/_world.yaml", "rayalign/recipes/bare.jinja"}
    assert not wanted - held
