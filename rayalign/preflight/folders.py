"""What a model's or a tokenizer's folder must hold, told by its files' names and its JSON, without loading any.

Each check gives one line that says what is wrong and what to do, or None. A name that is no folder may be the hub's.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Literal

from rayalign.config.model import ModelConfig
from rayalign.data.sources import could_be_hub_name
from rayalign.data.vocabulary import Vocabulary, read_vocabulary, scratch_problem, vocabulary_problem

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
OFF = {"1", "true", "yes", "on"}  # how people set HF_HUB_OFFLINE


def check_model(location: str, model: ModelConfig) -> str | None:
    """Whether a model can be loaded from here, and is long enough for model.max_length."""
    folder = Path(location).expanduser()
    if not os.path.isdir(folder):
        return _not_a_folder(location, folder, "model")
    if os.path.isfile(folder / "adapter_config.json"):
        return None  # peft's; it names its base model
    config = _read_json(folder / "config.json")
    if config is None or not any(any(folder.glob(pattern)) for pattern in WEIGHTS):
        lacks = "config.json that can be read" if config is None else "weights (*.safetensors)"
        return f"{location} is no model folder: no {lacks} in it; give a folder written by save_pretrained"
    positions = config.get("max_position_embeddings")
    if isinstance(positions, int) and positions < model.max_length and not config.get("rope_scaling"):
        return f"{location} is made for {positions} tokens, and model.max_length is {model.max_length}; lower it"
    return None


def check_tokenizer(location: str, *, needs_template: bool) -> str | None:
    """Whether a tokenizer is here, with a chat template where the config brings none."""
    folder = Path(location).expanduser()
    if not os.path.isdir(folder):
        return _not_a_folder(location, folder, "tokenizer")
    if not any(os.path.isfile(folder / name) for name in TOKENIZERS):
        return f"{location}: no tokenizer in this folder; set model.tokenizer to one with tokenizer.json"
    if needs_template and not _has_template(folder):
        return (
            f"{location}: this tokenizer has no chat template; set data.chat_template to a .jinja file, "
            'or to "plain" for bare text'
        )
    return None


def check_vocabulary(location: str, tokenizer: str, chat_template: str | None) -> str | None:
    """Whether a model reads the run's tokens, where both are folders here; others are checked when they are loaded."""
    folder, run = Path(location).expanduser(), _run_vocabulary(tokenizer, chat_template)
    config = _read_json(folder / "config.json")
    if run is None or config is None:
        return None
    own = None if location == tokenizer else read_vocabulary(folder)
    return vocabulary_problem(location, _num_tokens(config), own, run)


def num_tokens_of(tokenizer: str) -> int | None:
    """How many tokens the run's tokenizer has; None where it is no folder here."""
    found = read_vocabulary(Path(tokenizer).expanduser())
    return None if found is None else max([*found.ordinary.values(), *found.added.values()], default=-1) + 1


def check_scratch(scratch: dict[str, Any], tokenizer: str, chat_template: str | None) -> str | None:
    """Whether a new model will know as many tokens as the run's tokenizer has."""
    run = _run_vocabulary(tokenizer, chat_template) if "vocab_size" in scratch else None
    return scratch_problem(scratch["vocab_size"], run) if run else None


def check_template(chat_template: str) -> str | None:
    """Whether the file that data.chat_template names is there."""
    if chat_template == "plain" or os.path.isfile(Path(chat_template).expanduser()):
        return None
    return f'{chat_template}: no such file; give a .jinja file, or "plain" for bare text'


def hub_problem(name: str, kind: Literal["models", "datasets"]) -> str | None:
    """Why the hub will not give this: downloads are off, and its cache has none of that name."""
    variables = [v for v in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if os.environ.get(v, "").lower() in OFF]
    if not variables or any(os.path.isdir(place) for place in _cached(name.partition(":")[0], kind)):
        return None
    return (
        f"{name}: no such folder here, not in the Hugging Face cache, and {variables[0]} forbids to download it; "
        "give a local path, or unset the variable"
    )


def _not_a_folder(location: str, folder: Path, what: str) -> str | None:
    if os.path.exists(folder):
        return f"{location}: a file, but a {what} is a folder; give the folder that holds it"
    if not could_be_hub_name(location):
        relative = "" if folder.is_absolute() else f", which is relative to {Path.cwd()}"
        return f"{location}: no such folder; check the path{relative}"
    return hub_problem(location, "models")


def _has_template(folder: Path) -> bool:
    if os.path.isfile(folder / "chat_template.jinja") or os.path.isfile(folder / "chat_template.json"):
        return True
    return bool((_read_json(folder / "tokenizer_config.json") or {}).get("chat_template"))


def _run_vocabulary(tokenizer: str, chat_template: str | None) -> Vocabulary | None:
    """What the run's tokenizer makes, with the tokens that the template and the ends of a text use."""
    folder = Path(tokenizer).expanduser()
    settings = _read_json(folder / "tokenizer_config.json") or {}
    ends = (settings.get(key) for key in ("bos_token", "eos_token"))
    used = [str(token.get("content") if isinstance(token, dict) else token) for token in ends]
    used.append(str(settings.get("chat_template")))
    for file in (Path(chat_template or "").expanduser(), folder / "chat_template.jinja"):
        with contextlib.suppress(OSError, ValueError):
            used.append(file.read_text(encoding="utf-8"))
    return read_vocabulary(folder, used=" ".join(used))


def _num_tokens(config: dict[str, Any]) -> int | None:
    """vocab_size of a config.json, which a model that reads more than text has one level down."""
    text = config.get("text_config")
    found = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return found if isinstance(found, int) else None


def _cached(name: str, kind: str) -> list[Path]:
    """Where the hub's client, and `datasets`, keep what they have downloaded."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", home / "datasets"))
    return [hub / f"{kind}--{name.replace('/', '--')}", prepared / name.replace("/", "___").lower()]


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
