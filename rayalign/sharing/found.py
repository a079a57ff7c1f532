"""What a run has to share: its config, and the newest policy and reward of its finished stages, or those of one stage."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rayalign.config.base import stage_reference
from rayalign.config.explain import did_you_mean
from rayalign.config.fits import LOG_RATIO
from rayalign.config.load import load_config
from rayalign.config.run import RunConfig
from rayalign.config.stages import Stage
from rayalign.errors import UserError
from rayalign.serving.newest import ROLES, SETTINGS, Role, finished_stages, holds, newest
from rayalign.storage.mirror import DONE
from rayalign.storage.run_folder import CONFIG_FILE

Kind = Literal["policy", "sequence_reward", "token_reward", "log_ratio_reward"]


@dataclass(frozen=True)
class SharedModel:
    """A saved model of a run: what it is, the stage that made it, and its folder."""

    role: Role
    stage: Stage
    folder: Path

    @property
    def kind(self) -> Kind:
        """Which loader and which card fit it."""
        if self.role == "policy":
            return "policy"
        if (self.folder / LOG_RATIO).is_file():
            return "log_ratio_reward"
        return "token_reward" if reward_settings(self.folder).get("kind") == "token" else "sequence_reward"


@dataclass(frozen=True)
class SharedRun:
    """A run's folder, its config as resolved then, and what of it is shared."""

    folder: Path
    config: RunConfig
    models: list[SharedModel]

    def stages_behind(self, stage: Stage) -> list[Stage]:
        """A stage and those that it learned from, all the way up, in the run's order."""
        model = self.config.model
        found, wanted = [], {stage.name, *_stages_named([model.tokenizer or model.path])}
        for one in reversed(self.config.stages[: self.config.stages.index(stage) + 1]):
            if one.name in wanted:
                inputs = {**one.inputs(), **one.shared_inputs(self.config.data)}
                wanted |= _stages_named([needed.location for needed in inputs.values()])
                found.append(one)
        return found[::-1]


def find_run(place: Path, *, stage: str | None = None) -> SharedRun:
    """The models of `stage`; without one, the newest policy and the reward that goes with it.

    Raises UserError for a place that is no run, an unknown or unfinished stage, and where there are no models.
    """
    folder = place.expanduser().absolute()
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{place}: no run (it has no {CONFIG_FILE}); give the folder that `rayalign train` printed")
    config = load_config(folder / CONFIG_FILE)
    if stage is not None:
        return SharedRun(folder, config, _of_stage(folder, config, stage))
    finished = finished_stages(config, folder)
    if not finished:
        raise UserError(f"{place}: no stage of this run has finished; the same `rayalign train` goes on with it")
    models = [SharedModel(role, maker, folder / maker.name / role) for role, maker in newest(folder, finished).items()]
    if not models:
        names = ", ".join(one.name for one in finished)
        raise UserError(f"{place}: its finished stages ({names}) left neither a policy nor a reward to export")
    return SharedRun(folder, config, models)


def reward_settings(folder: Path) -> dict[str, Any]:
    """What a reward's config.json says of pooling, normaliser and kind; empty for another model."""
    found = read_settings(folder / SETTINGS).get("rayalign_reward")
    return found if isinstance(found, dict) else {}


def read_settings(file: Path) -> dict[str, Any]:
    """A JSON object of a model's folder. Raises UserError for a file that holds none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{file}: cannot be read as a model's settings; is the run's folder whole?")
    return found


def _stages_named(locations: Iterable[str | None]) -> set[str]:
    references = [stage_reference(location) for location in locations if location]
    return {reference[0] for reference in references if reference}


def _of_stage(folder: Path, config: RunConfig, name: str) -> list[SharedModel]:
    stages = {one.name: one for one in config.stages}
    if name not in stages:
        meant = did_you_mean(name, list(stages)) or f"; it has {', '.join(stages)}"
        raise UserError(f"--stage {name}: this run has no stage of that name{meant}")
    if not (folder / name / DONE).is_file():
        raise UserError(f"--stage {name}: has not finished in {folder}; the same `rayalign train` goes on with it")
    models = [SharedModel(role, stages[name], folder / name / role) for role in ROLES if holds(folder, name, role)]
    if not models:
        raise UserError(f"--stage {name}: a stage {stages[name].kind} leaves neither a policy nor a reward; name another")
    return models
