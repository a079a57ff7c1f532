"""Draws responses from a named checkpoint and stores them as rows that any stage can read as data."""

from __future__ import annotations

import json

from rayalign.config.stages import SampleStage
from rayalign.errors import DataError
from rayalign.stages.context import RunContext
from rayalign.stages.inputs import load_prompts, locate_model
from rayalign.storage.aside import written_aside
from rayalign.types import Rollout


def run_sample(context: RunContext, stage: SampleStage) -> None:
    """Artifact: `samples.jsonl` with prompt_ids, prompt, response, ended, sampler_logprob."""
    source = stage.prompts or context.config.data.prompts or context.config.data.demonstrations
    if source is None:
        raise DataError(f"stage {stage.name} needs prompts: set its prompts, data.prompts or data.demonstrations")
    room = stage.sampling.max_new_tokens
    prompts = load_prompts(context, source, room=room, limit=stage.num_prompts)
    group = context.rollout_group(locate_model(context, stage.policy))
    with context.progress.stage(stage.name) as bar:
        seed = context.seed_of(stage.name, "sample")
        rollouts = group.generate(prompts, stage.sampling, num_per_prompt=stage.num_per_prompt, seed=seed)
        rollout = group.fetch(rollouts)
        bar.update(note={"samples": len(rollout)})
    with written_aside(context.stage_folder(stage.name) / "samples.jsonl") as path:
        path.write_text("".join(stored_lines(context, rollout)), encoding="utf-8")


def stored_lines(context: RunContext, rollout: Rollout) -> list[str]:
    """One JSON object a sample. Token ids go along: a text may tokenise in more than one way."""
    template = context.template()
    sequences = rollout.sequences
    return [
        json.dumps(
            {
                "prompt": template.decode_prompt(prompt),
                "response": template.decode_response(response),
                "ended": bool(ended),
                "sampler_logprob": round(float(logprobs.sum()), 6),
                "prompt_tokens": prompt.tolist(),
                "response_tokens": response.tolist(),
            },
            ensure_ascii=False,
        )
        + "\n"
        for prompt, response, ended, logprobs in zip(
            sequences.prompts(), sequences.responses(), sequences.ended, rollout.sampler_logprobs, strict=True
        )
    ]
