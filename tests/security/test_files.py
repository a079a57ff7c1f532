"""What a config or a model's folder names leads neither out of the run's folder nor to code that runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayalign.config.load import parse_config
from rayalign.data.template import Template, load_tokenizer
from rayalign.errors import ConfigError, DataError, UserError
from rayalign.models.backbone import load_pretrained
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.types import Message
from tests.models.tiny import model_config, save_tiny

OUTSIDE = ["../x", "a/b", "/tmp/x", "..", ".", "", "a\x00b", "a\n", "~x", ".git"]


def config(**changes: Any) -> Any:
    stages = [{"kind": "sft", "policy": "m"}, {"kind": "sample", "policy": "stage:sft/policy"}]
    found = {"name": "x", "model": {"path": "m"}, "data": {"demonstrations": {"path": "d.jsonl"}}, "stages": stages}
    return parse_config(found | changes)


@pytest.mark.parametrize("name", OUTSIDE)
def test_names_are_names(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        config(name=name)
    with pytest.raises(ConfigError, match="name"):
        config(stages=[{"kind": "sft", "name": name, "policy": "m"}])


@pytest.mark.parametrize("artifact", ["policy/../../../x", "policy/..", "../x", "/etc/passwd", "policy/a/../../x"])
def test_references_stay_in_their_stage(artifact: str) -> None:
    stages = [{"kind": "sft", "policy": "m"}, {"kind": "sample", "policy": f"stage:sft/{artifact}"}]
    with pytest.raises(ConfigError, match=r"stages\.sample\.policy"):
        config(stages=stages)
    with pytest.raises(ConfigError, match=r"data\.demonstrations\.path"):
        config(data={"demonstrations": {"path": f"stage:sft/{artifact}"}})


class Pickled:
    """Runs a command where it is unpickled."""

    def __init__(self, ran: Path) -> None:
        self._ran = ran

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._ran}",)


def test_weights_that_are_pickles_run_nothing(tmp_path: Path) -> None:
    folder, ran = Path(save_tiny(tmp_path / "model")), tmp_path / "ran"
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Pickled(ran)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="a pickle of more than tensors") as error:
        load_pretrained(AutoModelForCausalLM, str(folder), model_config())
    assert "\n" not in str(error.value) and not ran.exists()


def test_a_folders_own_code_runs_only_where_it_is_trusted(tmp_path: Path) -> None:
    """Of a model and of a tokenizer; with trust_remote_code it does run, so the test can fail."""
    folder, ran = Path(save_tiny(tmp_path / "model")), tmp_path / "ran"
    (folder / "own_code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    settings = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own_code.Config", "AutoModelForCausalLM": "own_code.Model"}
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "theirs", "auto_map": auto}))
    tokenizer = save_tokenizer(tmp_path / "tokenizer")
    (tokenizer / "own_code.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    file = tokenizer / "tokenizer_config.json"
    told = json.loads(file.read_text())
    own = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own_code.Own", None]}}
    file.write_text(json.dumps(told | own))
    with pytest.raises(UserError, match="cannot be loaded as a model"):
        load_pretrained(AutoModelForCausalLM, str(folder), model_config())
    with pytest.raises(ConfigError, match="no tokenizer that loads"):
        load_tokenizer(tokenizer)
    assert not ran.exists()
    trusted = model_config().model_copy(update={"trust_remote_code": True})
    with pytest.raises((UserError, AttributeError)):  # own_code has no Model
        load_pretrained(AutoModelForCausalLM, str(folder), trusted)
    assert ran.exists()


def test_a_chat_template_runs_in_a_sandbox(tmp_path: Path) -> None:
    template = Template(load_tokenizer(save_tokenizer(tmp_path)))
    template.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(DataError, match="unsafe"):
        template.prompt_text((Message("user", "x"),))
