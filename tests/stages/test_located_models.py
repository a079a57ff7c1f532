"""Models that are found when their stage comes: one that reads other tokens than the run's is refused before it loads."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, AutoTokenizer, LlamaConfig

from rayalign.data.template import Template
from rayalign.errors import UserError
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.stages import inputs
from rayalign.stages.inputs import check_scratch, locate_model


@pytest.fixture
def context(tmp_path: Path) -> Any:
    """A run with the planted tokenizer, that knows where everything is."""
    folder = save_tokenizer(tmp_path / "tokenizer")
    template = Template(AutoTokenizer.from_pretrained(folder))
    config = SimpleNamespace(model=SimpleNamespace(trust_remote_code=False))
    return SimpleNamespace(config=config, locate=str, tokenizer_path=str(folder), template=lambda: template)


def model(folder: Path, num_tokens: int) -> Path:
    """A folder with a model's config."""
    LlamaConfig(vocab_size=num_tokens).save_pretrained(folder)
    return folder


def with_other_words(tokenizer: Path, folder: Path) -> Path:
    """Puts a tokenizer into a folder that has two words the other way round."""
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)
    told = json.loads((folder / "tokenizer.json").read_text())
    words = told["model"]["vocab"]
    words["lamp"], words["chair"] = words["chair"], words["lamp"]
    (folder / "tokenizer.json").write_text(json.dumps(told))
    return folder


def test_a_model_with_the_runs_tokenizer_or_none(context: Any, tmp_path: Path) -> None:
    bare = model(tmp_path / "bare", 5000)
    assert locate_model(context, str(bare)) == str(bare)
    same = model(tmp_path / "same", 5000)
    shutil.copytree(context.tokenizer_path, same, dirs_exist_ok=True)
    assert locate_model(context, str(same)) == str(same)


def test_a_model_that_knows_too_few(context: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="knows 10 tokens, and the run's tokenizer"):
        locate_model(context, str(model(tmp_path / "small", 10)))
    with pytest.raises(UserError, match="stages.sft.scratch.vocab_size: a new model of 10 tokens"):
        check_scratch(context, "sft", 10)


def test_a_model_of_another_tokenizer(context: Any, tmp_path: Path) -> None:
    other = with_other_words(Path(context.tokenizer_path), model(tmp_path / "other", 5000))
    with pytest.raises(UserError, match=re.escape(f"{other}: made for another tokenizer than the run's")):
        locate_model(context, str(other))


def test_a_model_of_the_hub(context: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what is loaded from there; where it gives nothing, its loader says so."""
    other = with_other_words(Path(context.tokenizer_path), tmp_path / "other")
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *_, **__: LlamaConfig(vocab_size=5000))
    monkeypatch.setattr(inputs, "load_tokenizer", lambda *_, **__: AutoTokenizer.from_pretrained(other))
    with pytest.raises(UserError, match="some/reward: made for another tokenizer"):
        locate_model(context, "some/reward")

    def nothing(*_: object, **__: object) -> None:
        raise OSError

    monkeypatch.undo()
    monkeypatch.setattr(AutoConfig, "from_pretrained", nothing)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", nothing)
    assert locate_model(context, "some/reward") == "some/reward"
