"""AVA as a stage: a token reward and a policy from stored demonstrations or preferences, and how well the reward ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from rayalign.config.ava import AvaStage
from rayalign.data.fingerprint import fingerprint
from rayalign.data.pairs import interleaved
from rayalign.engines.ava import AvaEngine, AvaSetup
from rayalign.evaluate.statistics import accuracy_interval, mean_interval
from rayalign.stages.context import RunContext, last_good_kept
from rayalign.stages.fit_checkpoints import FitCheckpoints, ShuffledBatches
from rayalign.stages.inputs import load_demonstrations, locate_model
from rayalign.stages.pairs import load_pairs, split_pairs
from rayalign.storage.aside import write_json, written_aside
from rayalign.types import Sequences


@dataclass(frozen=True)
class AvaData:
    """What is learned from, and what is kept out: chosen responses or demonstrations, and the rejected ones of pairs."""

    train: Sequences
    heldout: Sequences
    train_rejected: Sequences | None = None
    heldout_rejected: Sequences | None = None

    def batch(self, rows: np.ndarray) -> Sequences:
        """As the engine takes it."""
        chosen = self.train.take(rows)
        return chosen if self.train_rejected is None else interleaved(chosen, self.train_rejected.take(rows))

    def fingerprints(self) -> dict[str, str]:
        """What is learned from, by name."""
        found = {"rows": fingerprint(self.train)}
        return found | ({"rejected": fingerprint(self.train_rejected)} if self.train_rejected is not None else {})


@dataclass(frozen=True)
class AvaJob:
    """What each rank is sent."""

    setup: AvaSetup
    data: AvaData
    reward_folder: str
    policy_folder: str
    checkpoints: FitCheckpoints


@dataclass(frozen=True)
class AvaHeldout:
    """What rank 0 reports at the end, of what was kept out. Empty arrays where nothing was."""

    nll_token: np.ndarray  # [B] nats a token of each chosen response under the language model
    margins: dict[str, np.ndarray]  # [N] chosen minus rejected, by the responses' sum and by their last token


def run_ava(context: RunContext, stage: AvaStage) -> None:
    """Artifacts: `reward` (dense) and `policy`, Hugging Face folders, and `report.json`."""
    data = _data(context, stage)
    folder = context.stage_folder(stage.name)
    with written_aside(folder / "reward") as reward, written_aside(folder / "policy") as policy:
        for saved in (reward, policy):
            context.template().save_tokenizer(saved)
        beside = {"reward": reward, "policy": policy}
        checkpoints = FitCheckpoints.of(context, stage.name, data.fingerprints(), beside=beside)
        job = AvaJob(_setup(context, stage, len(data.train)), data, str(reward), str(policy), checkpoints)
        heldout = _fit(context, stage, job)
    _say(context, stage, heldout)
    write_json(folder / "report.json", _report(context, stage, data, heldout))


def fit(job: AvaJob, report: Callable[[Any], None]) -> None:
    """One rank's work, to its end."""
    engine, data = AvaEngine(job.setup), job.data
    size, seed = job.setup.config.batch_size, job.setup.seed
    batches = ShuffledBatches(len(data.train), size, data.batch, seed=seed, fingerprint=fingerprint(data.train))

    def save() -> None:
        engine.save(reward=job.reward_folder, policy=job.policy_folder)

    with last_good_kept(save):
        job.checkpoints.steps(engine, batches, job.setup.total_steps, report)
        heldout = _measure(engine, data)
    save()
    report(heldout)


def _measure(engine: AvaEngine, data: AvaData) -> AvaHeldout:
    if not len(data.heldout):
        return AvaHeldout(np.empty(0), {})
    chosen = engine.measure(data.heldout)
    nll = -chosen["logprob"] / data.heldout.response_lengths
    if data.heldout_rejected is None:
        return AvaHeldout(nll, {})
    rejected = engine.measure(data.heldout_rejected)
    return AvaHeldout(nll, {over: chosen[over] - rejected[over] for over in ("sum", "last")})


def _data(context: RunContext, stage: AvaStage) -> AvaData:
    if stage.variant == "demonstrations":
        split = load_demonstrations(context, stage.name)
        return AvaData(split.train, split.heldout)
    train, heldout = split_pairs(
        *load_pairs(context, stage.name, stage.pairs), frac=stage.heldout_frac, seed=context.config.seed
    )
    return AvaData(train[0], heldout[0], train[1], heldout[1])


def _setup(context: RunContext, stage: AvaStage, num: int) -> AvaSetup:
    steps = stage.epochs * -(-num // min(stage.batch_size, num))
    return AvaSetup(
        path=locate_model(context, stage.init),
        model=context.config.model,
        learner=context.config.learner,
        config=stage,
        total_steps=min(steps, stage.max_steps or steps),
        seed=context.config.seed,
    )


def _fit(context: RunContext, stage: AvaStage, job: AvaJob) -> AvaHeldout | None:
    if context.config.placement.colocate:
        context.close_sampler()  # Ray Train takes the GPUs
    heldout, done = None, job.checkpoints.done
    shown = "pair_accuracy" if stage.variant == "preferences" else "nll_token"
    with context.progress.stage(stage.name, total=job.setup.total_steps) as bar:
        bar.update(advance=done)

        def on_report(found: Any) -> None:
            nonlocal heldout, done
            if isinstance(found, AvaHeldout):
                heldout = found
                return
            context.tracker.log(stage.name, 0, done, found, job.setup.total_steps)
            done += 1
            note = {shown.replace("_", " "): found[shown].value()} if shown in found else {}
            bar.update(advance=1, note=note)

        context.fleet.run_ranks(fit, job, on_report)
    return heldout


def _report(context: RunContext, stage: AvaStage, data: AvaData, heldout: AvaHeldout | None) -> dict[str, Any]:
    """Counts, what the loss was made of in the last quarter of the steps, and the measures on what was kept out."""
    steps = context.tracker.records(stage.name)
    last = [step for step in steps[-max(1, len(steps) // 4) :] if "loss" in step]  # skipped steps measured nothing
    terms = [key for key in (last[0] if last else {}) if key.endswith("_term")]
    name = "pairs" if stage.variant == "preferences" else "demonstrations"
    report: dict[str, Any] = {
        f"num_{name}": len(data.train),
        f"num_heldout_{name}": len(data.heldout),
        "num_steps": len(steps),
        "terms": {key.removesuffix("_term"): fmean(step[key] for step in last) for key in terms},
        "sigma": {
            key: reduce(step[f"sigma_{key}"] for step in last)
            for key, reduce in (("mean", fmean), ("min", min), ("on_floor_frac", fmean))
            if last
        },
    }
    if heldout is None or not len(heldout.nll_token):
        return report
    report["heldout_nll_token"] = mean_interval(heldout.nll_token).as_dict()
    for over, margins in heldout.margins.items():
        report[f"heldout_accuracy_{over}"] = accuracy_interval(margins).as_dict()
    return report


def _say(context: RunContext, stage: AvaStage, heldout: AvaHeldout | None) -> None:
    if heldout and heldout.margins:
        margins = heldout.margins["sum"]
        share = accuracy_interval(margins).mean
        context.progress.say(f"{stage.name}: ranks {share:.0%} of {len(margins)} held-out pairs as they are")
    if stage.irl and stage.lambda_td >= 1:
        context.progress.say(
            f"{stage.name}: with lambda_td {stage.lambda_td:g} deviations shrink to sigma_floor; see sigma in report.json"
        )
    if not stage.pretrained_q:
        context.progress.say(
            f"{stage.name}: with pretrained_q false Q has a head of its own and the language model's was not trained; "
            "use the artifact reward, not policy"
        )
