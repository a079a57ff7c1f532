"""A reward in closed form: two policies, and nothing to train."""

from __future__ import annotations

from rayalign.config.fits import LogRatioStage
from rayalign.models.rewards import write_log_ratio
from rayalign.stages.context import RunContext
from rayalign.stages.inputs import locate_model
from rayalign.storage.aside import written_aside


def run_log_ratio(context: RunContext, stage: LogRatioStage) -> None:
    """Artifact: `reward`, which names the two policies by where they lie from here, with the tokenizer."""
    policy, reference = (locate_model(context, location) for location in (stage.policy, stage.reference))
    with context.progress.stage(stage.name), written_aside(context.stage_folder(stage.name) / "reward") as folder:
        write_log_ratio(folder, policy, reference, scale=stage.scale)
        context.template().save_tokenizer(folder)
