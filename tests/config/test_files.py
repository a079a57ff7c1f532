"""The configs people start from: each loads, prints as a config that is the same, and asks for nothing odd."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rayalign.actors.plan import check_fits, make_plan
from rayalign.config.load import dump_config, load_config, parse_config
from rayalign.config.run import RunConfig
from rayalign.preflight.check import examine_run

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (REPOSITORY / "configs").rglob("*.yaml") if path.parent.name != "control")
FILES = [*CONFIGS, REPOSITORY / "rayalign" / "planted" / "demo.yaml"]  # those of control: tests/control
NODES = {"rft": 4, "rft_8gpu": 8, "rft_one_gpu": 1, "rft_cpu": 0, "demo": 0}  # GPUs of the one node; recipes: see below


def run_name(file: Path) -> str:
    """What a file's run is called: configs/paper/rft.yaml is paper-rft."""
    size = file.parent.name
    return file.stem if size not in ("paper", "planted") or file.stem == "demo" else f"{size}-{file.stem}"


def num_gpus(config: RunConfig) -> int:
    """Of the node that a config is for; the recipes of a paper have one of eight."""
    return NODES.get(config.name, 8 if config.name.startswith("paper-") else 0)


@pytest.fixture(params=FILES, ids=run_name)
def config(request: pytest.FixtureRequest) -> RunConfig:
    """Each of the files."""
    return load_config(request.param)


def test_there_are_configs_to_start_from() -> None:
    """The test below would pass over an empty folder."""
    assert {path.stem for path in FILES} >= set(NODES)
    assert len({run_name(path) for path in FILES}) == len(FILES)


def test_printed_it_is_the_same_config(config: RunConfig, tmp_path: Path) -> None:
    """`rayalign config a.yaml > b.yaml` gives the same run, and the same print."""
    file = tmp_path / "resolved.yaml"
    file.write_text(dump_config(config))
    again = load_config(file)
    assert again == config
    assert dump_config(again) == file.read_text()


def test_run_names_are_the_files(config: RunConfig, request: pytest.FixtureRequest) -> None:
    """So that runs of different configs never meet in one folder."""
    assert f"[{config.name}]" in request.node.name


def test_it_fits_the_machine_it_is_for(config: RunConfig) -> None:
    """The groups have room on the node that the file's first line names."""
    gpus = num_gpus(config)
    node = {"CPU": 64.0 if gpus else 2.0, "GPU": float(gpus)}
    check_fits(make_plan(config.placement, max_staleness=config.max_staleness), [node])


def test_only_its_data_files_are_missing(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every placeholder in data/ is named before anything starts, and nothing else is wrong."""
    monkeypatch.chdir(REPOSITORY)
    config = config.model_copy(update={"run_dir": str(tmp_path)})
    missing = [finding for finding in examine_run(config, config.stages) if finding.state == "missing"]
    assert all("data/" in finding.text for finding in missing), missing
    assert missing or config.name == "demo" or config.name.startswith("planted-")


def test_placeholders_can_be_filled(config: RunConfig, tmp_path: Path) -> None:
    """With one file of demonstrations and preferences in their place, of enough prompts for a step, nothing is missing."""
    data = tmp_path / "data.jsonl"
    rows = [{"prompt": f"a {number}", "response": "b", "chosen": "b", "rejected": "c"} for number in range(400)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = config.model_dump(mode="json") | {"run_dir": str(tmp_path)}
    filled = parse_config(yaml.safe_load(_with_file(yaml.safe_dump(values), data)))
    missing = [f for f in examine_run(filled, filled.stages) if f.state == "missing"]
    assert not missing or all("bare.jinja" in f.text for f in missing)


def test_the_bare_template_adds_nothing() -> None:
    """The prompt of paper/demonstrations_to_rewards.yaml is the post."""
    import jinja2

    template = jinja2.Template((REPOSITORY / "configs" / "bare.jinja").read_text())
    post = "SUBREDDIT: r/a\n\nTL;DR:"
    assert template.render(messages=[{"role": "user", "content": post}], add_generation_prompt=True) == post


def _with_file(text: str, file: Path) -> str:
    return "\n".join(
        f"{line.partition(':')[0]}: {file}" if "path: data/" in line else line for line in text.splitlines()
    )
