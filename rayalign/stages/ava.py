"""AVA as a stage: a token reward and a policy from stored demonstrations or preferences, and how well the reward ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rayalign.config.ava import AvaStage
from rayalign.data.cursor import Cursor
from rayalign.data.fingerprint import fingerprint
from rayalign.data.pairs import interleaved
from rayalign.engines.ava import AvaEngine, AvaSetup
from rayalign.evaluate.statistics import accuracy_interval, mean_interval
from rayalign.stages.context import RunContext, last_good_kept
from rayalign.stages.inputs import load_demonstrations, locate_model
from rayalign.stages.pairs import load_pairs, split_pairs
from rayalign.storage.aside import write_json, written_aside
from rayalign.telemetry.metrics import Metrics, merge, values
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


@dataclass(frozen=True)
class AvaJob:
    """What each rank is sent."""

    setup: AvaSetup
    data: AvaData
    reward_folder: str
    policy_folder: str


@dataclass(frozen=True)
class AvaHeldout:
    """What rank 0 reports at the end, of what was kept out. Empty arrays where nothing was."""

    nll_token: np.ndarray  # [B] nats a token of each chosen response under the language model
    margins: dict[str, np.ndarray]  # [N] chosen minus rejected, by the responses' sum and by their last token


@dataclass
class _Watched:
    """What was reported, step by step and at the end."""

    steps: list[Metrics] = field(default_factory=list)
    heldout: AvaHeldout | None = None


def run_ava(context: RunContext, stage: AvaStage) -> None:
    """Artifacts: `reward` (dense) and `policy`, Hugging Face folders, and `report.json`."""
    data = _data(context, stage)
    folder = context.stage_folder(stage.name)
    with written_aside(folder / "reward") as reward, written_aside(folder / "policy") as policy:
        for saved in (reward, policy):
            context.template().save_tokenizer(saved)
        job = AvaJob(_setup(context, stage, len(data.train)), data, str(reward), str(policy))
        watched = _fit(context, stage, job)
    _say(context, stage, watched)
    write_json(folder / "report.json", _report(stage, data, watched))


def fit(job: AvaJob, report: Callable[[Any], None]) -> None:
    """One rank's work, to its end."""
    engine, data = AvaEngine(job.setup), job.data
    size = min(job.setup.config.batch_size, len(data.train))
    cursor = Cursor(len(data.train), seed=job.setup.seed, fingerprint=fingerprint(data.train))

    def save() -> None:
        engine.save(reward=job.reward_folder, policy=job.policy_folder)

    with last_good_kept(save):
        for _ in range(job.setup.total_steps):
            report(engine.fit(data.batch(cursor.take(size))))
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


def _fit(context: RunContext, stage: AvaStage, job: AvaJob) -> _Watched:
    if context.config.placement.colocate:
        context.close_sampler()  # Ray Train takes the GPUs
    watched = _Watched()
    shown = "pair_accuracy" if stage.variant == "preferences" else "nll_token"
    with context.progress.stage(stage.name, total=job.setup.total_steps) as bar:

        def on_report(found: Any) -> None:
            if isinstance(found, AvaHeldout):
                watched.heldout = found
                return
            context.tracker.log(stage.name, 0, len(watched.steps), found)
            watched.steps.append(found)
            note = {shown.replace("_", " "): found[shown].value()} if shown in found else {}
            bar.update(advance=1, note=note)

        context.fleet.run_ranks(fit, job, on_report)
    return watched


def _report(stage: AvaStage, data: AvaData, watched: _Watched) -> dict[str, Any]:
    """Counts, what the loss was made of in the last quarter of the steps, and the measures on what was kept out."""
    steps = watched.steps
    last = values(merge(steps[-max(1, len(steps) // 4) :]))
    name = "pairs" if stage.variant == "preferences" else "demonstrations"
    report: dict[str, Any] = {
        f"num_{name}": len(data.train),
        f"num_heldout_{name}": len(data.heldout),
        "num_steps": len(steps),
        "terms": {key.removesuffix("_term"): value for key, value in last.items() if key.endswith("_term")},
        "sigma": {key.removeprefix("sigma_"): value for key, value in last.items() if key.startswith("sigma_")},
    }
    if watched.heldout is None or not len(watched.heldout.nll_token):
        return report
    report["heldout_nll_token"] = mean_interval(watched.heldout.nll_token).as_dict()
    for over, margins in watched.heldout.margins.items():
        report[f"heldout_accuracy_{over}"] = accuracy_interval(margins).as_dict()
    return report


def _say(context: RunContext, stage: AvaStage, watched: _Watched) -> None:
    if watched.heldout and watched.heldout.margins:
        margins = watched.heldout.margins["sum"]
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
