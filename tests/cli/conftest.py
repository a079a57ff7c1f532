"""A workplace for the command line: a folder with a tokenizer, a tiny model and a few rows, and a config over them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rayalign.cli import main

ROWS = [{"prompt": f"what is the color of {word} ?", "response": f"the {word} is red ."} for word in ("sky", "sea")] * 4


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line that says what is wrong: the last of stderr, and the only one of its kind."""
        lines = self.err.strip().splitlines()
        assert lines and lines[-1].startswith("rayalign: "), self.err
        assert "Traceback" not in self.err + self.out, self.err
        assert sum(line.startswith("rayalign: ") for line in lines) == 1, self.err
        return lines[-1]


Rayalign = Callable[..., Outcome]


@pytest.fixture
def rayalign(capsys: pytest.CaptureFixture[str]) -> Rayalign:
    """The command line, in this process."""

    def call(*arguments: object) -> Outcome:
        code: Any = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return Outcome(int(code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tokenizer`, with a chat template, and `model`, a Llama of a few thousand weights that knows its words."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from rayalign.planted.tokenizer import save_tokenizer

    folder = tmp_path_factory.mktemp("parts")
    save_tokenizer(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "model")
    return folder


@dataclass
class Workplace:
    """A folder to run in, and the config's values, to be damaged."""

    folder: Path
    values: dict[str, Any]

    def write(self) -> Path:
        """The config as a file."""
        file = self.folder / "run.yaml"
        file.write_text(yaml.safe_dump(self.values))
        return file

    @property
    def run_folder(self) -> Path:
        """Where the run writes."""
        return self.folder / "runs" / "small"


@pytest.fixture
def workplace(parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """One SFT stage over `demos.jsonl`, in this process: valid as it is."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "demos.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    values = {
        "name": "small",
        "model": {
            "path": str(parts / "model"),
            "tokenizer": str(parts / "tokenizer"),
            "dtype": "float32",
            "max_length": 32,
        },
        "data": {"demonstrations": {"path": "demos.jsonl"}},
        "placement": {"backend": "inprocess"},
        "telemetry": {"tensorboard": False},
        "stages": [{"kind": "sft", "batch_size": 4}],
    }
    return Workplace(tmp_path, values)
