"""Where a run's models lie, and what their folders say of them: told before anything heavy is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rayalign.config.fits import LOG_RATIO
from rayalign.config.load import load_config
from rayalign.errors import UserError
from rayalign.serving.newest import Role, finished_stages, newest
from rayalign.storage.run_folder import CONFIG_FILE

MAX_LENGTH = 2048  # tokens of prompt and response, where the model does not say how far it reads


def find_reward(place: Path) -> Path:
    """The reward at a place: a folder that holds one, or a run's only or newest one (`newest`). Raises UserError."""
    place = place.expanduser()
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give a run's folder, or one that holds a reward")
    if (place / LOG_RATIO).is_file() or (place / "config.json").is_file():
        return place
    return _one_of("reward", place, [folder for folder in sorted(place.glob("*/reward")) if _holds_reward(folder)])


def find_policy(place: Path) -> Path:
    """The language model at a place: a folder that holds one, or a run's only or newest policy. Raises UserError."""
    place = place.expanduser()
    if not place.is_dir():
        raise UserError(f"{place}: no such folder; give a run's folder, or one that holds a language model")
    found = place
    if not (place / "config.json").is_file():
        stages = [folder for folder in sorted(place.glob("*/policy")) if (folder / "config.json").is_file()]
        found = _one_of("policy", place, stages)
    if settings_of(found).get("rayalign_reward"):
        raise UserError(f"{found}: a reward, and no language model; give a folder that a stage saved as its policy")
    return found


def _one_of(role: Role, place: Path, found: list[Path]) -> Path:
    """The only one; of several the newest of the run's finished stages, as `rayalign export` takes it."""
    if len(found) == 1:
        return found[0]
    if found and (place / CONFIG_FILE).is_file():
        config = load_config(place / CONFIG_FILE)
        stage = newest(place, finished_stages(config, place)).get(role)
        if stage is not None:
            return place / stage.name / role
    if found:
        there = ", ".join(str(folder) for folder in found)
        kinds = {"reward": "rewards", "policy": "policies"}[role]
        raise UserError(f"{place}: {len(found)} {kinds} are in this run, of no finished stage ({there}); name one of them")
    raise UserError(f"{place}: no {role} in this folder, nor in a stage's; give RUN, or RUN/STAGE/{role}")


def _holds_reward(folder: Path) -> bool:
    return (folder / LOG_RATIO).is_file() or (folder / "config.json").is_file()


def reward_settings(folder: Path) -> dict[str, Any]:
    """The config of the reward's model; of the policy, where the reward is a ratio of two. Raises UserError."""
    if (folder / LOG_RATIO).is_file():
        policy = folder / str(_json(folder / LOG_RATIO).get("policy"))
        return _json(policy / "config.json") if (policy / "config.json").is_file() else {}
    settings = settings_of(folder)
    causal = any(str(name).endswith("ForCausalLM") for name in settings.get("architectures") or ())
    if causal and not settings.get("rayalign_reward"):
        raise UserError(f"{folder}: a language model, and no reward; give a folder that a stage saved as its reward")
    return settings


def settings_of(folder: Path) -> dict[str, Any]:
    """config.json of a model's folder. Raises UserError where it cannot be read."""
    return _json(folder / "config.json")


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: cannot be read as a model's settings; give a whole folder")
    return found


def max_length_of(settings: dict[str, Any]) -> int:
    """Tokens that a model says it reads; MAX_LENGTH where it does not say."""
    positions = settings.get("max_position_embeddings")
    return positions if isinstance(positions, int) and positions > 0 else MAX_LENGTH
