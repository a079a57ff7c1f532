"""A saved model copied so that it stands alone: safetensors, tokenizer and template, and nothing that points outside."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from rayalign.config.fits import LOG_RATIO
from rayalign.config.model import ModelConfig
from rayalign.data.template import Template
from rayalign.errors import UserError
from rayalign.models.rewards import write_log_ratio
from rayalign.models.token_reward import HEADS
from rayalign.serving.newest import SETTINGS
from rayalign.sharing.found import SharedModel, read_settings

ADAPTER = "adapter_config.json"  # of peft
GENERATION = "generation_config.json"
WEIGHTS = (SETTINGS, GENERATION, "*.safetensors", "*.safetensors.index.json", f"{HEADS}/*.safetensors")
TOKENIZER = (
    "tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
# Where transformers wrote down the folder that a model was loaded from.
PLACES = ("_name_or_path", "name_or_path")


def copy_model(model: SharedModel, target: Path, settings: ModelConfig, template: Template) -> None:
    """Copies a model of a run to the new folder `target`, where its responses also end as in training.

    Raises UserError for a side of a log-ratio that is not there, OSError where the disk is full.
    """
    if model.kind == "log_ratio_reward":
        _copy_log_ratio(model.folder, target, settings)
        template.save_tokenizer(target)  # the reward of a stage `implicit` lies without one
    else:
        _copy(model.folder, target, settings)
    if model.role == "policy":
        _write_ends(target, template)


def _write_ends(folder: Path, template: Template) -> None:
    """Lets a policy's generation config end responses where training ended them.

    A base model trained with a chat template ends at a token that its own generation config does not name, and other
    programs would let it write on.
    """
    file = folder / GENERATION
    found = read_settings(file) if file.is_file() else {}
    ends = list(template.end_token_ids)
    _write(file, found | {"eos_token_id": ends[0] if len(ends) == 1 else ends})


def _copy_log_ratio(source: Path, target: Path, settings: ModelConfig) -> None:
    """Both policies go into the folder, under the names of their sides."""
    found = read_settings(source / LOG_RATIO)
    scale = found.get("scale")
    if not isinstance(scale, (int, float)):
        raise UserError(f"{source / LOG_RATIO}: its scale is no number ({scale!r}); is the run's folder whole?")
    target.mkdir(parents=True)
    for side in ("policy", "reference"):
        named = str(found.get(side))
        beside = (source / named).resolve()
        if beside.is_dir():
            _copy(beside, target / side, settings)
        elif named.startswith((".", "/")):
            raise UserError(f"{source}: its {side} is not at {beside}; keep the run's folders together")
        else:
            _save_again(named, target / side, settings)  # a name of the hub
    write_log_ratio(target, str(target / "policy"), str(target / "reference"), scale=scale)


def _copy(source: Path, target: Path, settings: ModelConfig) -> None:
    if (source / ADAPTER).is_file():  # rayalign saves its own merged; this one came from elsewhere
        raise UserError(f"{source}: an adapter without its base model; merge the two (peft's merge_and_unload) and use that")
    if not any(source.glob("*.safetensors")):
        _save_again(str(source), target, settings)
        _copy_files(source, target, TOKENIZER)
    else:
        target.mkdir(parents=True)
        brings_code = "auto_map" in read_settings(source / SETTINGS)
        _copy_files(source, target, (*WEIGHTS, *TOKENIZER, *(("*.py",) if brings_code else ())))
    for name in (SETTINGS, "tokenizer_config.json"):
        _forget_places(target / name)


def _copy_files(source: Path, target: Path, patterns: tuple[str, ...]) -> None:
    """What links point to is copied, not the links."""
    for file in sorted({file for pattern in patterns for file in source.glob(pattern)}):
        if file.is_file():
            copied = target / file.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copied)


def _save_again(path: str, target: Path, settings: ModelConfig) -> None:
    """As safetensors, without rounding: a model that lies there as a pickle, or under a name of the hub."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from rayalign.models.backbone import load_pretrained, save_folder

    model: Any = load_pretrained(AutoModelForCausalLM, path, settings.model_copy(update={"dtype": "float32"}))
    if AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code).dtype == torch.bfloat16:
        model = model.to(torch.bfloat16)
    target.mkdir(parents=True)
    save_folder(model, target, model.state_dict())


def _forget_places(file: Path) -> None:
    if not file.is_file():
        return
    found = read_settings(file)
    if any(key in found for key in PLACES):
        _write(file, {key: value for key, value in found.items() if key not in PLACES})


def _write(file: Path, settings: dict[str, Any]) -> None:
    file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
