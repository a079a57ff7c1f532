"""What a person gets wrong: one line that says what, where and what to do, exit code 2, and nothing written."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayalign.errors import DataError
from rayalign.preflight import check
from rayalign.stages.inputs import load_samples
from tests.cli.conftest import ROWS, Rayalign, Workplace


def refused(rayalign: Rayalign, workplace: Workplace, *overrides: str) -> str:
    """Runs the config; the line it was refused with, before anything was written or loaded."""
    outcome = rayalign("train", workplace.write(), *overrides)
    assert outcome.code == 2, outcome
    assert outcome.err.count("\n") == 1
    assert not workplace.run_folder.exists()
    return outcome.line


def write(text: str) -> Callable[[Workplace], None]:
    """Puts another text into demos.jsonl."""
    return lambda workplace: (workplace.folder / "demos.jsonl").write_text(text) and None


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


DATA = [
    (write(""), ["demos.jsonl", "holds no rows"]),
    (write(lines(ROWS[0], ROWS[1], '{"prompt": "a", ')), ["demos.jsonl:3", "not valid JSON"]),
    (write(lines(ROWS[0], "[1, 2]")), ["demos.jsonl:2", "must be an object"]),
    (write(lines(ROWS[0], {"text": "a"})), ["demos.jsonl:2", "{prompt, response}"]),
    (write(lines({"prompt": "a", "response": 3})), ["demos.jsonl:1", "'response' holds int"]),
    (write(lines({"prompt": "a", "response": ""})), ["demos.jsonl", "no row can be used"]),
    (lambda w: (w.folder / "demos.jsonl").write_bytes(b'{"prompt": "\xff"}\n'), ["demos.jsonl:1", "not valid UTF-8"]),
    (lambda w: (w.folder / "demos.jsonl").unlink(), ["data.demonstrations", "no such file or folder"]),
]


@pytest.mark.parametrize(("damage", "words"), DATA, ids=lambda value: value[-1] if isinstance(value, list) else "")
def test_data(rayalign: Rayalign, workplace: Workplace, damage: Callable[[Workplace], None], words: list[str]) -> None:
    """Before anything starts, the first rows of every file are read."""
    damage(workplace)
    line = refused(rayalign, workplace)
    assert all(word in line for word in words), line


SETTINGS: list[tuple[list[str], list[str]]] = [
    (["data.demonstrations.path=demos.csv"], ["demos.csv", "no such file or folder"]),
    (["data.demonstrations.columns.promt=q"], ["'promt' is not a column we read"]),
    (["data.demonstrations.columns.prompt=q"], ["demos.jsonl:1", "no column 'q'"]),
    (["data.demonstrations="], ["stage sft needs demonstrations: set data.demonstrations"]),
    (["model.path=/nowhere/model"], ["model.path", "/nowhere/model: no such folder"]),
    (["model.path=demos.jsonl"], ["a file, but a model is a folder"]),
    (["model.path=."], ["no model folder", "config.json"]),
    (["model.tokenizer=."], ["no tokenizer in this folder", "model.tokenizer"]),
    (["model.tokenizer=./nowhere"], ["model.tokenizer", "no such folder"]),
    (["data.chat_template=chat.jinja"], ["data.chat_template", "no such file", '"plain"']),
    (["model.max_length=4096"], ["made for 64 tokens", "model.max_length is 4096"]),
    (["model.attention=flash_attention_2", "model.dtype=bfloat16"], ["flash_attn is not installed", "sdpa"]),
    (["telemetry.mlflow.tracking_uri=http://127.0.0.1:1"], ["pip install 'rayalign[mlflow]'"]),
    (["run_dir=demos.jsonl"], ["run_dir", "is a file"]),
    (
        ["placement={policy: {gpus: 2, workers: 3}, rollout: {gpus: 1}}"],
        ["placement.policy", "2 GPUs make 2 workers, not 3"],
    ),
]


@pytest.fixture
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages that only some installations have are in none."""
    find = importlib.util.find_spec
    extras = {"mlflow", "wandb", "flash_attn"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in extras else find(name))


@pytest.mark.parametrize(("settings", "words"), SETTINGS, ids=lambda value: value[0][:50])
@pytest.mark.usefixtures("without_extras")
def test_settings(rayalign: Rayalign, workplace: Workplace, settings: list[str], words: list[str]) -> None:
    """Paths that are not there, and what a config asks for that is not installed."""
    line = refused(rayalign, workplace, *settings)
    assert all(word in line for word in words), line


def test_all_that_is_missing_is_counted(rayalign: Rayalign, workplace: Workplace) -> None:
    line = refused(rayalign, workplace, "data.demonstrations.path=no.jsonl", "model.path=/nowhere", "data.chat_template=x")
    assert "(and 2 more" in line and "rayalign doctor" in line


def test_model_without_weights(rayalign: Rayalign, workplace: Workplace, parts: Path) -> None:
    (workplace.folder / "model").mkdir()
    shutil.copy(parts / "model" / "config.json", workplace.folder / "model")
    assert "no weights (*.safetensors)" in refused(rayalign, workplace, "model.path=model")


@pytest.fixture
def models(workplace: Workplace, parts: Path) -> Path:
    """A folder with `small`, which knows ten tokens, and `other`, with a tokenizer that has two words exchanged."""
    for name in ("small", "other"):
        shutil.copytree(parts / "model", workplace.folder / name)
    config = workplace.folder / "small" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 10}))
    told = json.loads((parts / "tokenizer" / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    words["lamp"], words["chair"] = words["chair"], words["lamp"]
    (workplace.folder / "other" / "tokenizer.json").write_text(json.dumps(told))
    return workplace.folder


@pytest.mark.parametrize("key", ["sft.policy", "irl.policy", "irl.reward.init", "evaluate.models.it", "evaluate.reward"])
@pytest.mark.usefixtures("models")
def test_models_of_another_tokenizer(rayalign: Rayalign, workplace: Workplace, parts: Path, key: str) -> None:
    """Wherever a model is named: one that would read the run's tokens as others, or does not know them all."""
    model = str(parts / "model")
    irl = {"kind": "irl", "policy": model, "reward": {"init": model}, "sampling": {"max_new_tokens": 8}}
    evaluate = {"kind": "evaluate", "models": {"it": model}, "sampling": {"max_new_tokens": 8}}
    workplace.values["stages"] += [irl | {"improve": {"prompts_per_step": 1}}, evaluate]
    workplace.values["data"]["prompts"] = {"path": "demos.jsonl"}
    line = refused(rayalign, workplace, f"stages.{key}=small")
    assert f"stages.{key}: small: knows 10 tokens, and the run's tokenizer" in line
    line = refused(rayalign, workplace, f"stages.{key}=other")
    assert f"stages.{key}: other: made for another tokenizer than the run's" in line and "'lamp' is token" in line


def test_a_new_model_with_too_few_tokens(rayalign: Rayalign, workplace: Workplace) -> None:
    scratch = "{model_type: llama, hidden_size: 32, num_hidden_layers: 1, vocab_size: 10}"
    line = refused(rayalign, workplace, f"stages.sft.scratch={scratch}")
    assert "stages.sft.scratch.vocab_size: a new model of 10 tokens" in line and "remove this key" in line


def test_tokens_that_nothing_uses_need_no_room(rayalign: Rayalign, workplace: Workplace, parts: Path) -> None:
    """As Gemma's image token has none in its text model; one that the chat template writes does."""
    shutil.copytree(parts / "tokenizer", workplace.folder / "tokenizer")
    file = workplace.folder / "tokenizer" / "tokenizer.json"
    told = json.loads(file.read_text())
    end = {**told["added_tokens"][0], "content": "<image>", "id": len(told["model"]["vocab"])}
    file.write_text(json.dumps(told | {"added_tokens": [*told["added_tokens"], end]}))
    outcome = rayalign("doctor", workplace.write(), "model.tokenizer=tokenizer")
    assert outcome.code == 0, outcome.out
    template = workplace.folder / "tokenizer" / "chat_template.jinja"
    template.write_text("<image>" + template.read_text())
    assert "knows" in refused(rayalign, workplace, "model.tokenizer=tokenizer")


def test_tokenizer_without_a_template(rayalign: Rayalign, workplace: Workplace, parts: Path) -> None:
    shutil.copytree(parts / "tokenizer", workplace.folder / "tokenizer")
    (workplace.folder / "tokenizer" / "chat_template.jinja").unlink()
    line = refused(rayalign, workplace, "model.tokenizer=tokenizer")
    assert "no chat template" in line and "data.chat_template" in line and '"plain"' in line


def test_hub_name_while_downloads_are_off(
    rayalign: Rayalign, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(workplace.folder / "cache"))
    line = refused(rayalign, workplace, "model.path=some/model")
    assert "some/model" in line and "HF_HUB_OFFLINE forbids" in line
    assert "HF_HUB_OFFLINE" in refused(rayalign, workplace, "data.demonstrations.path=some/rows")


def test_artifact_of_a_later_stage(rayalign: Rayalign, workplace: Workplace) -> None:
    """References in shared settings may name any stage, but not one that comes after the first that needs them."""
    workplace.values["data"] = {"demonstrations": {"path": "stage:world/demonstrations.jsonl"}}
    workplace.values["stages"].append({"kind": "planted"})
    assert "is made after stage sft needs it; move stage world before it" in refused(rayalign, workplace)


def test_stored_samples_that_are_none(rayalign: Rayalign, workplace: Workplace) -> None:
    """A file that is not there is missed before the start; one without tokens, when its stage reads it."""
    irl = {"kind": "irl", "policy": "stage:sft/policy", "sampling": {"max_new_tokens": 8}}
    irl["reward"] = {"init": "stage:sft/policy", "negatives": ["nowhere.jsonl"]}
    workplace.values["stages"].append(irl)
    line = refused(rayalign, workplace)
    assert "stages.irl.reward.negatives.0: nowhere.jsonl: no such file" in line
    with pytest.raises(DataError, match="demos.jsonl:1: not a sample"):
        load_samples("demos.jsonl")


def test_too_little_disk(rayalign: Rayalign, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "MIN_FREE_BYTES", 2**60)
    line = refused(rayalign, workplace)
    assert "run_dir" in line and "MiB free" in line


def test_run_dir_that_cannot_be_made(rayalign: Rayalign, workplace: Workplace) -> None:
    """/proc says that it may be written, and refuses."""
    outcome = rayalign("train", workplace.write(), "run_dir=/proc/runs")
    assert outcome.code == 2 and "run_dir" in outcome.line


@pytest.mark.parametrize("words", ["", "train", "fly", "train --fast", "config seed=1", "demo sede=1", "doctor no.yaml"])
def test_command_lines(rayalign: Rayalign, words: str) -> None:
    outcome = rayalign(*words.split())
    assert outcome.code == 2 and outcome.out == "" and outcome.err.count("\n") == 1
    assert outcome.line
