"""Which of a run's models is meant where none is named: the newest policy, and the reward that it followed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rayalign.config.base import stage_reference
from rayalign.config.fits import LOG_RATIO
from rayalign.config.loops import RlStage
from rayalign.config.run import RunConfig
from rayalign.config.stages import Stage
from rayalign.storage.mirror import DONE

Role = Literal["policy", "reward"]
ROLES: tuple[Role, ...] = ("policy", "reward")
SETTINGS = "config.json"


def finished_stages(config: RunConfig, folder: Path) -> list[Stage]:
    """Of the run in `folder`, in the config's order."""
    return [stage for stage in config.stages if (folder / stage.name / DONE).is_file()]


def newest(folder: Path, finished: Sequence[Stage]) -> dict[Role, Stage]:
    """The stage of the last policy, and of the reward that it followed where that is a stage's; else of the last reward."""
    makers: dict[Role, list[Stage]] = {role: [s for s in finished if holds(folder, s.name, role)] for role in ROLES}
    found: dict[Role, Stage] = {role: stages[-1] for role, stages in makers.items() if stages}
    if "policy" in found and "reward" in found:
        by_name = {stage.name: stage for stage in makers["reward"]}
        found["reward"] = by_name.get(_followed(found["policy"]) or "", found["reward"])
    return found


def holds(folder: Path, stage: str, role: Role) -> bool:
    """Whether a stage left such a model."""
    found = folder / stage / role
    return (found / SETTINGS).is_file() or (found / LOG_RATIO).is_file()


def _followed(stage: Stage) -> str | None:
    """The stage of the reward that a policy was trained on, or its own."""
    if not isinstance(stage, RlStage):
        return stage.name
    reference = stage_reference(stage.reward) if stage.reward else None
    return reference[0] if reference else None
