"""Which examples of a run may be given away: those whose prompts no stage trained on, as far as the config tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayalign.config.base import stage_reference
from rayalign.config.data import DataSource
from rayalign.config.run import RunConfig
from rayalign.config.selection import EvaluateStage
from rayalign.sharing.found import SharedRun


def heldout_examples(run: SharedRun, results: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Those of the last evaluate stage's `results`; none where its prompts are, or may be, data that a stage trains on."""
    stages = (stage for stage in reversed(run.config.stages) if isinstance(stage, EvaluateStage))
    stage = next((one for one in stages if (run.folder / one.name / "results.json").exists()), None)
    if stage is None or results is None or stage.prompts is None:  # unset: data.prompts, on which policies train
        return []
    own = stage.prompts
    if any(_overlap(own, source) for source in _trained_on(run.config)):
        return []
    return list(results.get("examples") or [])


def _trained_on(config: RunConfig) -> Iterator[DataSource]:
    data = config.data
    yield from (one for one in (data.demonstrations, data.prompts, data.preferences) if one is not None)
    for stage in config.stages:
        if not isinstance(stage, EvaluateStage):
            sources = (needed.source for needed in stage.inputs().values())
            yield from (DataSource(path=one) if isinstance(one, str) else one for one in sources if one is not None)


def _overlap(one: DataSource, other: DataSource) -> bool:
    """Whether they share rows: the same file, hub name or artifact, or a file and the folder that it lies in."""
    if stage_reference(one.path) or stage_reference(other.path):
        return one.path == other.path
    places = [Path(source.path).expanduser().resolve() for source in (one, other)]
    if places[0] == places[1]:
        return one.split == other.split or places[0].is_file()
    return places[0] in places[1].parents or places[1] in places[0].parents
