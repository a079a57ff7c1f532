"""The same through the command line in a process of its own: one line, exit code 2, nothing written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.conftest import DEMO, run_rayalign
from tests.hostile.judge import state
from tests.hostile.texts import bomb

ROW = json.dumps({"prompt": "a", "response": "b"})
SFT = """
name: small
model: {path: model, max_length: 32}
data: {demonstrations: {path: rows.jsonl}}
placement: {backend: inprocess}
stages: [{kind: sft}]
"""
# Command, the config's text, the rows, overrides, and what the line must name.
CASES: list[tuple[str, str | bytes, str | bytes, list[str], str]] = [
    ("train", b"\xff\xfename: x", ROW, [], "run.yaml:1"),
    ("train", "name: x\n\tmodel: y\n", ROW, [], "run.yaml:2"),
    ("config", bomb(), ROW, [], "run.yaml:6"),
    ("doctor", "a: !!python/object/apply:os.system ['touch hacked']", ROW, [], "run.yaml:1"),
    ("config", "name: &a [*a]", ROW, [], "run.yaml:1"),
    ("train", 'name: "x\\ud800"', ROW, [], "name"),
    ("config", "\x1b]0;x\x07: 1", ROW, [], "run.yaml:1"),
    ("train", SFT, ROW, ["name=\x1b[2J\udcff"], "name"),
    ("train", SFT, ROW, ["stages.sft.name=../../x"], "name"),
    ("train", SFT, ROW, ["run_dir=run.yaml"], "run_dir"),
    ("train", SFT, ROW, [f"run_dir={'x' * 300}"], "run_dir"),
    ("train", SFT, ROW, ["data.demonstrations.path=pipe.jsonl"], "data.demonstrations"),
    ("train", SFT, ROW, ["data.demonstrations.path=~nobody-is-called-so/x"], "data.demonstrations.path"),
    ("train", SFT, ROW, ["stages.sft.scratch={num_hidden_layers: 2000000000, model_type: llama}"], "num_hidden_layers"),
    ("train", SFT, f"{ROW}\n{ROW[:-4]}", [], "rows.jsonl:2"),
    ("train", SFT, f"{ROW}\n\n[]\n", [], "rows.jsonl:3"),
    ("train", SFT, b"\x1f\x8b\x08" + ROW.encode(), [], "rows.jsonl:1"),
    ("train", SFT, ROW.replace('"a"', '"\\ud800"'), [], "'prompt'"),
    ("doctor", SFT, "", ["seed=-1"], "seed"),
    ("train", "extends: run.yaml", ROW, [], "run.yaml: extends"),
]  # fmt: skip


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what a config names; the model is looked at from outside only."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(DEMO.parents[2]))
    os.mkfifo("pipe.jsonl")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (tmp_path / "model" / name).write_text("{}")
    return tmp_path


@pytest.mark.parametrize(("command", "config", "rows", "overrides", "place"), CASES, ids=range(len(CASES)))
def test_one_line(
    workplace: Path, command: str, config: str | bytes, rows: str | bytes, overrides: list[str], place: str
) -> None:
    for name, content in (("run.yaml", config), ("rows.jsonl", rows)):
        (workplace / name).write_bytes(content.encode() if isinstance(content, str) else content)
    before = {path.name for path in workplace.iterdir()}, state(workplace / "model")
    done = run_rayalign(command, "run.yaml", *overrides, timeout_s=60)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("rayalign: ") and place in line and line.isprintable(), line
    assert ({path.name for path in workplace.iterdir()}, state(workplace / "model")) == before
