"""Fits a sequence reward to stored pairs, and says how well it does on prompts that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayalign.config.fits import FitRewardStage
from rayalign.data.fingerprint import fingerprint
from rayalign.data.pairs import interleaved
from rayalign.engines.fit_reward import RewardFitEngine
from rayalign.errors import DataError
from rayalign.evaluate.heterogeneity import Heterogeneity, heterogeneity
from rayalign.evaluate.statistics import accuracy_interval
from rayalign.ports import FitSetup
from rayalign.stages.context import RunContext, last_good_kept
from rayalign.stages.fit_checkpoints import FitCheckpoints, ShuffledBatches
from rayalign.stages.inputs import load_demonstrations, load_samples, locate_model, with_shared_ids
from rayalign.stages.pairs import Pairs, load_pairs, split_pairs
from rayalign.storage.aside import write_json, written_aside
from rayalign.telemetry.metrics import values
from rayalign.types import Sequences


@dataclass(frozen=True)
class FitJob:
    """What each rank is sent."""

    setup: FitSetup
    train: Pairs
    measured: dict[str, Sequences]  # that are scored at the end, by name
    folder: str
    checkpoints: FitCheckpoints


@dataclass
class Fitted:
    """What rank 0 reports at the end: [B] scores of each of the measured sets."""

    scores: dict[str, np.ndarray] = field(default_factory=dict)


def run_fit_reward(context: RunContext, stage: FitRewardStage) -> None:
    """Artifacts: `reward`, a Hugging Face folder, and `report.json`: accuracy on prompts kept out, and the diagnosis."""
    train, heldout = split_pairs(
        *load_pairs(context, stage.name, stage.pairs), frac=stage.heldout_frac, seed=context.config.seed
    )
    diagnosed = _diagnosed(context, stage, train[0])
    measured = {"better": heldout[0], "worse": heldout[1], **diagnosed}
    measured = {name: sequences for name, sequences in measured.items() if len(sequences)}
    folder = context.stage_folder(stage.name)
    with written_aside(folder / "reward") as reward:
        context.template().save_tokenizer(reward)
        data = {"pairs": fingerprint(interleaved(*train))}
        checkpoints = FitCheckpoints.of(context, stage.name, data, beside={"reward": reward})
        setup = _setup(context, stage, len(train[0]))
        fitted = _fit(context, stage, FitJob(setup, train, measured, str(reward), checkpoints))
    report: dict[str, Any] = {"num_pairs": len(train[0]), "num_heldout_pairs": len(heldout[0])}
    if "better" in fitted.scores:
        margins = fitted.scores["better"] - fitted.scores["worse"]
        accuracy = accuracy_interval(margins)
        report["heldout_accuracy"] = accuracy.as_dict()
        context.progress.say(f"{stage.name}: ranks {accuracy.mean:.0%} of {len(margins)} held-out pairs as they are")
    if diagnosed:
        found = _diagnose(diagnosed, fitted)
        report["heterogeneity"] = found.as_dict()
        context.progress.say(f"{stage.name}: {found.verdict}")
    write_json(folder / "report.json", report)


def fit(job: FitJob, report: Callable[[Any], None]) -> None:
    """One rank's work, to its end."""
    engine = RewardFitEngine(job.setup)
    better, worse = job.train
    batches = ShuffledBatches(
        len(better),
        job.setup.config.batch_size,
        lambda rows: interleaved(better.take(rows), worse.take(rows)),
        seed=job.setup.seed,
        fingerprint=fingerprint(better),
    )
    with last_good_kept(lambda: engine.save(job.folder)):
        job.checkpoints.steps(engine, batches, job.setup.total_steps, report)
        side = {"better": better, "worse": worse}.get(job.setup.config.normalise)
        if side is not None:
            engine.normalise_on(side)
        fitted = Fitted({name: engine.scores(sequences) for name, sequences in job.measured.items()})
    engine.save(job.folder)
    report(fitted)


def _setup(context: RunContext, stage: FitRewardStage, num_pairs: int) -> FitSetup:
    steps = stage.epochs * -(-num_pairs // min(stage.batch_size, num_pairs))
    return FitSetup(
        path=locate_model(context, stage.init),
        model=context.config.model.model_copy(update={"lora": None}),
        learner=context.config.learner,
        config=stage,
        total_steps=min(steps, stage.max_steps or steps),
        seed=context.config.seed,
        loss=context.components.reward_loss,
    )


def _fit(context: RunContext, stage: FitRewardStage, job: FitJob) -> Fitted:
    if context.config.placement.colocate:
        context.close_sampler()  # Ray Train takes the GPUs
    fitted, done = Fitted(), job.checkpoints.done
    with context.progress.stage(stage.name, total=job.setup.total_steps) as bar:
        bar.update(advance=done)

        def on_report(found: Any) -> None:
            nonlocal done
            if isinstance(found, Fitted):
                fitted.scores.update(found.scores)
                return
            context.tracker.log(stage.name, 0, done, found, job.setup.total_steps)
            done += 1
            bar.update(advance=1, note={"pair accuracy": values(found).get("pair_accuracy", math.nan)})

        context.fleet.run_ranks(fit, job, on_report)
    return fitted


def _diagnosed(context: RunContext, stage: FitRewardStage, trained: Sequences) -> dict[str, Sequences]:
    """Demonstrations, the policy's and the base's samples on prompts that the reward was not trained on.

    Empty where no diagnosis is asked for. Raises DataError where one is, and no such prompt has all three.
    """
    if stage.heterogeneity is None:
        return {}
    split = load_demonstrations(context, stage.name)
    seen, *parts = with_shared_ids(
        [
            trained,
            Sequences.concatenate([split.train, split.heldout]),
            load_samples(context.locate(stage.heterogeneity.policy_samples)),
            load_samples(context.locate(stage.heterogeneity.base_samples)),
        ]
    )
    unseen = set.intersection(*(set(part.prompt_ids.tolist()) for part in parts)) - set(seen.prompt_ids.tolist())
    if not unseen:
        raise DataError(
            f"stages.{stage.name}.heterogeneity: no prompt outside the training pairs has a demonstration and samples of "
            "both models; sample them on the demonstrations' prompts, and set heldout_frac above 0"
        )
    kept = [part.take(np.flatnonzero(np.isin(part.prompt_ids, list(unseen)))) for part in parts]
    return dict(zip(("demonstrations", "policy_samples", "base_samples"), kept, strict=True))


def _diagnose(diagnosed: dict[str, Sequences], fitted: Fitted) -> Heterogeneity:
    arguments = {f"{name}_ids": sequences.prompt_ids for name, sequences in diagnosed.items()}
    return heterogeneity(*(fitted.scores[name] for name in diagnosed), *arguments.values())
