"""`extends`: what a config lays over another one, and every way in which that cannot be done, in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rayalign.config.extends import merged
from rayalign.config.load import dump_config, load_config
from rayalign.errors import ConfigError

BASE = """\
name: base
seed: 3
model: {path: some/model, max_length: 64}
data:
  demonstrations: {path: demos.jsonl}
stages:
  - {kind: sft, epochs: 2, optimizer: {learning_rate: 1e-3, eps: 1e-6}}
  - {kind: sample, name: draw, policy: stage:sft/policy, sampling: {max_new_tokens: 8}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With `shared/base.yaml` in it."""
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "base.yaml").write_text(BASE)
    return tmp_path


def write(folder: Path, text: str, name: str = "own.yaml") -> Path:
    """A config of that text."""
    (folder / name).write_text(text)
    return folder / name


def test_values_are_merged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys inside others too; the file is found from the config's folder, wherever the command is run."""
    monkeypatch.chdir("/")
    own = write(folder, "extends: shared/base.yaml\nname: own\nmodel: {max_length: 128}\ndata: {prompts: {path: p.jsonl}}\n")
    config = load_config(own)
    assert (config.name, config.seed, config.model.path, config.model.max_length) == ("own", 3, "some/model", 128)
    assert config.data.demonstrations and config.data.prompts
    assert "extends" not in dump_config(config)


def test_stages_go_by_name(folder: Path) -> None:
    """The base's first; one of the same name is merged, and replaced where it is of another kind."""
    text = """\
extends: shared/base.yaml
stages:
  - {name: sft, optimizer: {learning_rate: 1e-4}}
  - {kind: log_ratio, name: draw, policy: stage:sft/policy, reference: some/model}
  - {kind: sft, name: more, policy: stage:sft/policy}
"""
    sft, draw, more = load_config(write(folder, text)).stages
    assert (sft.epochs, sft.optimizer.learning_rate, sft.optimizer.eps) == (2, 1e-4, 1e-6)
    assert (draw.kind, more.name) == ("log_ratio", "more")


def test_a_chain(folder: Path) -> None:
    """An extended file may extend another; an override goes over all."""
    write(folder, "extends: shared/base.yaml\nseed: 4\nname: middle\n", "middle.yaml")
    config = load_config(write(folder, "extends: middle.yaml\nname: own\n"), ["stages.sft.epochs=5"])
    assert (config.name, config.seed, config.stages[0].epochs) == ("own", 4, 5)


def test_the_base_is_left_alone() -> None:
    """Merging makes new values."""
    base = {"a": {"b": 1}, "stages": [{"kind": "sft", "epochs": 1}]}
    assert merged(base, {"a": {"c": 2}, "stages": [{"name": "sft", "epochs": 2}]}) == {
        "a": {"b": 1, "c": 2},
        "stages": [{"kind": "sft", "name": "sft", "epochs": 2}],
    }
    assert base == {"a": {"b": 1}, "stages": [{"kind": "sft", "epochs": 1}]}
    assert merged({"n": [1, 2]}, {"n": [3]}) == {"n": [3]}  # other lists are values
    assert merged({"critic": {"x": 1}}, {"critic": None}) == {"critic": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: nowhere.yaml\n", ["own.yaml", "nowhere.yaml: no such file", "relative"]),
        ("extends: own.yaml\n", ["own.yaml leads back to itself", "own.yaml -> own.yaml"]),
        ("extends: ring.yaml\n", ["leads back to itself", "own.yaml -> ring.yaml -> own.yaml"]),
        ("extends: [a, b]\n", ["expected the path of one YAML config"]),
        ("extends:\n", ["expected the path of one YAML config"]),
        ('extends: "a\\0b"\n', ["no such file"]),
        ("extends: loop.yaml\n", ["loop.yaml: no such file"]),
        ("extends: shared\n", ["shared: a folder"]),
        ("extends: broken.yaml\n", ["broken.yaml:2: not valid YAML"]),
        ("extends: shared/base.yaml\nmodel: {pth: x}\n", ["own.yaml", "model.pth: unknown key; did you mean path?"]),
        ("extends: shared/base.yaml\nstages:\n  - {name: stf, epochs: 1}\n", ["stages.stf", "kind is not set"]),
    ],
)
def test_faults(folder: Path, text: str, words: list[str]) -> None:
    write(folder, "extends: own.yaml\n", "ring.yaml")
    write(folder, "a: [\n", "broken.yaml")
    os.symlink("loop.yaml", folder / "loop.yaml")
    with pytest.raises(ConfigError) as caught:
        load_config(write(folder, text))
    line = str(caught.value)
    assert "\n" not in line and all(word in line for word in words), line
