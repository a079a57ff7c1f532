"""Supervised fine-tuning: every rank runs `fit` to its end, on Ray Train or in this process."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign import __version__
from rayalign.config.stages import SftStage
from rayalign.data.cursor import Cursor
from rayalign.data.fingerprint import fingerprint
from rayalign.engines.sft import SftEngine
from rayalign.errors import DataError
from rayalign.ports import SftSetup
from rayalign.stages.context import RunContext, written_aside
from rayalign.stages.inputs import sequences_of
from rayalign.telemetry.metrics import Metrics, values
from rayalign.types import Sequences


@dataclass(frozen=True)
class SftJob:
    """What each rank is sent."""

    setup: SftSetup
    sequences: Sequences
    batch_size: int
    seed: int
    folder: str


def run_sft(context: RunContext, stage: SftStage) -> None:
    """Artifact: `policy`, a Hugging Face folder with the tokenizer beside the weights."""
    source = stage.data or context.config.data.demonstrations
    if source is None:
        raise DataError(f"stage {stage.name} needs rows to fit: set data.demonstrations, or the stage's data")
    sequences = sequences_of(context, source)
    target = context.stage_folder(stage.name) / "policy"
    cached = _cache_folder(context, stage, sequences) if stage.cache else None
    if cached and cached.exists():
        context.progress.say(f"{stage.name}: taken from {cached}, made earlier with the same data and settings")
        with written_aside(target) as folder:
            shutil.copytree(cached, folder)
        return
    with written_aside(target) as folder:
        _fit(context, stage, sequences, folder)
        context.template().save_tokenizer(folder)
        if cached:
            with written_aside(cached) as copy:
                shutil.copytree(folder, copy)


def fit(job: SftJob, report: Callable[[Any], None]) -> None:
    """One rank's work: every rank draws the same batches and takes its share of each."""
    engine = SftEngine(job.setup)
    cursor = Cursor(len(job.sequences), seed=job.seed, fingerprint=fingerprint(job.sequences))
    for _ in range(job.setup.total_steps):
        report(engine.fit(job.sequences.take(cursor.take(job.batch_size))))
    engine.save(job.folder)


def _fit(context: RunContext, stage: SftStage, sequences: Sequences, folder: Path) -> None:
    batch_size = min(stage.batch_size, len(sequences))
    total_steps = stage.epochs * -(-len(sequences) // batch_size)
    total_steps = min(total_steps, stage.max_steps or total_steps)
    path = context.locate(stage.policy or context.config.model.path) if stage.scratch is None else None
    setup = SftSetup(
        path=path,
        scratch=_architecture(context, stage.scratch),
        model=context.config.model,
        learner=context.config.learner,
        optimizer=stage.optimizer,
        total_steps=total_steps,
        seed=context.config.seed,
    )
    job = SftJob(setup, sequences, batch_size, context.config.seed, str(folder))
    done = 0
    with context.progress.stage(stage.name, total=total_steps) as bar:

        def on_report(metrics: Metrics) -> None:
            nonlocal done
            context.tracker.log(stage.name, 0, done, metrics)
            done += 1
            bar.update(advance=1, note={"nll": values(metrics)["nll_token"]})

        context.fleet.run_ranks(fit, job, on_report)


def _architecture(context: RunContext, scratch: dict[str, Any] | None) -> dict[str, Any] | None:
    """The scratch keys, with the tokenizer's vocabulary and special tokens where they are not set."""
    if scratch is None:
        return None
    return {**context.template().model_settings(), **scratch}


def _cache_folder(context: RunContext, stage: SftStage, sequences: Sequences) -> Path:
    """A place named by everything the result depends on."""
    digest = hashlib.sha256()
    settings = {
        "version": __version__,
        "stage": stage.model_dump(mode="json", exclude={"name", "data", "cache"}),
        "model": context.config.model.model_dump(mode="json", exclude={"path", "tokenizer"}),
        "learner": context.config.learner.model_dump(mode="json"),
        "seed": context.config.seed,
        "num_ranks": context.fleet.num_workers("policy"),
        "special": context.template().model_settings(),
    }
    if stage.policy is not None:
        files = sorted(Path(context.locate(stage.policy)).glob("*.safetensors"))
        settings["start"] = [hashlib.sha256(f.read_bytes()).hexdigest() for f in files]
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for array in (sequences.tokens.values, sequences.tokens.lengths, sequences.prompt_lengths):
        digest.update(array.tobytes())
    root = Path(os.environ.get("RAYALIGN_CACHE", Path.home() / ".cache" / "rayalign"))
    return root / "sft" / digest.hexdigest()[:24]
