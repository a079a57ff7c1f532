"""A group that scores with a saved reward, for the stages that need one and train none."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

from rayalign.engines.scorer import RewardScorer
from rayalign.errors import UserError
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
        _check_kind(location, Path(path) / "config.json")
    return ScorerSetup(path, context.config.model.model_copy(update={"lora": None}), context.config.learner)


def _check_kind(location: str, config: Path) -> None:
    """Raises UserError for a policy in a reward's place, which would be told when its samples are drawn and it is loaded."""
    settings = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    causal = any(str(name).endswith("ForCausalLM") for name in settings.get("architectures") or ())
    if causal and "rayalign_reward" not in settings:
        raise UserError(f"{location}: a language model, and no reward; name one that a stage made (stage:STAGE/reward)")


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
