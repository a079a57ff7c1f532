"""Writes the planted world: texts with a known expert, and the tokenizer that knows all their words."""

from __future__ import annotations

from rayalign.config.stages import PlantedStage
from rayalign.planted.tokenizer import save_tokenizer
from rayalign.planted.world import write_world
from rayalign.stages.context import RunContext
from rayalign.storage.aside import written_aside


def run_planted(context: RunContext, stage: PlantedStage) -> None:
    """Artifacts: the world's data files, and `tokenizer`."""
    with written_aside(context.stage_folder(stage.name)) as folder:
        write_world(
            folder,
            variant=stage.variant,
            seed=stage.seed,
            kappa=stage.kappa,
            num_pretrain=stage.num_pretrain,
            num_demonstrations=stage.num_demonstrations,
            num_preferences=stage.num_preferences,
            num_prompts=stage.num_prompts,
            num_eval_prompts=stage.num_eval_prompts,
        )
        save_tokenizer(folder / "tokenizer")
