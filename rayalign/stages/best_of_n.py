"""The best of n samples by a saved reward: what selection alone is worth, and rows to distil it from (RAFT)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rayalign.config.selection import BestOfNStage
from rayalign.errors import DataError
from rayalign.evaluate.best_of import chances, chosen
from rayalign.evaluate.statistics import mean_interval
from rayalign.objectives.best_of import best_of_n_kl_bound, expected_best_of
from rayalign.report.curve import best_of_line, plot_best_of
from rayalign.stages.context import RunContext
from rayalign.stages.golden import golden_expert, golden_scores
from rayalign.stages.inputs import load_prompts, locate_model
from rayalign.stages.sample import stored_lines
from rayalign.stages.scoring import every_score, fixed_reward, scorer
from rayalign.storage.aside import write_json, written_aside
from rayalign.types import Rollout


def run_best_of_n(context: RunContext, stage: BestOfNStage) -> None:
    """Artifacts: `best.jsonl`, in the form of a sample stage's rows, `curve.json` and `curve.png`."""
    fixed_reward(context, stage.reward)  # a reward that is not there is told before the first sample is drawn
    rollout = _candidates(context, stage)
    most, sequences = max(stage.n), rollout.sequences
    with context.progress.stage(f"{stage.name}: scoring"), scorer(context, stage.reward) as reward:
        scores = every_score(reward, sequences).astype(np.float64).reshape(-1, most)
    golden = None
    if stage.golden:
        golden = golden_scores(stage.golden, context.template(), sequences).reshape(-1, most)
    best = chosen(scores, np.random.default_rng(context.config.seed)) + np.arange(0, len(sequences), most)
    curve = best_of_curve(stage.n, scores, golden)
    if stage.golden:
        curve["expert"] = {"golden": golden_expert(stage.golden, context.folder)}
    folder = context.stage_folder(stage.name)
    with written_aside(folder / "best.jsonl") as path:
        kept = Rollout(sequences.take(best), rollout.sampler_logprobs.take(best), rollout.policy_version)
        path.write_text("".join(stored_lines(context, kept)), encoding="utf-8")
    with written_aside(folder / "curve.png") as path:
        plot_best_of(curve, path)
    write_json(folder / "curve.json", curve)
    context.progress.say(f"{stage.name}: {best_of_line(curve)}")


def _candidates(context: RunContext, stage: BestOfNStage) -> Rollout:
    """As many samples a prompt as the largest n, prompt by prompt."""
    source = stage.prompts or context.config.data.prompts or context.config.data.demonstrations
    if source is None:
        raise DataError(f"stage {stage.name} needs prompts: set its prompts, data.prompts or data.demonstrations")
    prompts = load_prompts(context, source, room=stage.sampling.max_new_tokens, limit=stage.num_prompts)
    group = context.rollout_group(locate_model(context, stage.policy))
    # Not the numbers of a sample stage: what the reward was fitted to would come again, and win.
    seed = context.seed_of(stage.name, "candidates")
    with context.progress.stage(stage.name) as bar:
        drawn = group.generate(prompts, stage.sampling, num_per_prompt=max(stage.n), seed=seed)
        rollout = group.fetch(drawn)
        bar.update(note={"samples": len(rollout)})
    return rollout


def best_of_curve(sizes: Sequence[int], scores: np.ndarray, golden: np.ndarray | None = None) -> dict[str, Any]:
    """What choosing among n is worth, for each of `sizes`: scores and golden [P, M]; intervals are over prompts."""
    points = []
    for n in sorted(set(sizes)):
        expected = expected_best_of(torch.from_numpy(scores), n).numpy()
        point: dict[str, Any] = {
            "n": n,
            "kl_bound": float(best_of_n_kl_bound(n)),
            "reward": mean_interval(expected).as_dict(),
        }
        if golden is not None:
            point["golden"] = mean_interval((chances(scores, n) * golden).sum(axis=1)).as_dict()
        points.append(point)
    return {"num_prompts": len(scores), "num_samples": scores.shape[1], "points": points}
