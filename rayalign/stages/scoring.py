"""A group that scores with a saved reward, for the stages that need one and train none."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rayalign.engines.scorer import RewardScorer
from rayalign.models.rewards import LOG_RATIO
from rayalign.ports import ScorerSetup
from rayalign.stages.context import RunContext
from rayalign.stages.groups import RewardGroup
from rayalign.stages.inputs import locate_model


def scorer_setup(context: RunContext, location: str) -> ScorerSetup:
    """What scores with the reward at a location. Raises UserError where there is none, or one for other tokens."""
    path = context.locate(location)
    if not (Path(path) / LOG_RATIO).is_file():
        path = locate_model(context, location)
    return ScorerSetup(path, context.config.model.model_copy(update={"lora": None}), context.config.learner)


def start_scorer(context: RunContext, location: str) -> RewardGroup:
    """A group of scorers; the caller closes its workers."""
    setup = scorer_setup(context, location)
    return RewardGroup(context.fleet.start("reward", RewardScorer, [setup] * context.fleet.num_workers("reward")))


@contextlib.contextmanager
def scorer(context: RunContext, location: str) -> Iterator[RewardGroup]:
    """A group of scorers that ends with the block."""
    group = start_scorer(context, location)
    try:
        yield group
    finally:
        group.workers.close()
