"""Supervised fine-tuning: every rank runs `fit` to its end, on Ray Train or in this process."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rayalign import __version__
from rayalign.config.data import DataSource
from rayalign.config.stages import SftStage
from rayalign.data import shapes
from rayalign.data.cursor import StreamingRows
from rayalign.data.fingerprint import fingerprint
from rayalign.data.samples import is_sample_file
from rayalign.data.sources import read_rows
from rayalign.data.tally import Tally
from rayalign.data.template import Template, load_tokenizer
from rayalign.data.tokenize import AllTooLong, tokenize_demonstrations
from rayalign.engines.sft import SftEngine
from rayalign.errors import DataError
from rayalign.ports import SftSetup
from rayalign.stages.context import RunContext, last_good_kept
from rayalign.stages.fit_checkpoints import Batches, FitCheckpoints, ShuffledBatches
from rayalign.stages.inputs import check_scratch, load_demonstrations, locate_model, sequences_of, tell
from rayalign.storage.aside import written_aside
from rayalign.telemetry.metrics import Metrics, values
from rayalign.types import Sequences


class Source(Protocol):
    """Where a rank's batches come from; every rank is given the same ones and takes its share of each."""

    def batches(self, tally: Tally) -> Batches:
        """Endless batches. `tally` counts what is left out or cut on the way, where that was not told before."""

    def fingerprints(self) -> dict[str, str]:
        """What is learned from, by name, where that is known before it is read."""


@dataclass(frozen=True)
class InMemory:
    """Shuffled batches of sequences that are all here."""

    sequences: Sequences
    batch_size: int
    seed: int

    def batches(self, tally: Tally) -> ShuffledBatches:
        """Epoch after epoch, each in an order of its own."""
        rows = self.sequences
        return ShuffledBatches(len(rows), self.batch_size, rows.take, seed=self.seed, fingerprint=fingerprint(rows))

    def fingerprints(self) -> dict[str, str]:
        """Of the rows' tokens."""
        return {"rows": fingerprint(self.sequences)}


@dataclass(frozen=True)
class Streamed:
    """Batches of a source that is read and tokenised as it goes, in its own order, on every rank."""

    source: DataSource  # its path resolved
    tokenizer: str
    trust_remote_code: bool
    chat_template: str | None
    max_length: int
    overlong: Literal["error", "drop", "truncate"]
    room: int | None  # for answers, as every stage leaves it
    batch_size: int

    def batches(self, tally: Tally) -> StreamedBatches:
        """Epoch after epoch, in the source's order."""
        return StreamedBatches(self, tally)

    def fingerprints(self) -> dict[str, str]:
        """A stream is known as far as it was read: its batches check that themselves."""
        return {}


class StreamedBatches:
    """Batches may be smaller where rows are dropped, and one without rows is passed over.

    A row counts each time that it is read.
    """

    def __init__(self, source: Streamed, tally: Tally) -> None:
        tokenizer = load_tokenizer(source.tokenizer, trust_remote_code=source.trust_remote_code)
        self._source, self._tally = source, tally
        self._template = Template(tokenizer, source.chat_template)
        self._rows = StreamingRows(self._open)

    def take(self) -> Sequences:
        """The next batch that has rows. Raises DataError where no row of the whole source can be used."""
        source, tally = self._source, self._tally
        while True:
            places, batch = zip(*self._rows.take(source.batch_size), strict=True)
            part = tally.part()
            try:
                kept = tokenize_demonstrations(
                    batch,
                    self._template,
                    max_length=source.max_length,
                    overlong=source.overlong,
                    room=source.room,
                    places=places,
                    tally=part,
                )
            except AllTooLong:
                if self._rows.epoch and not tally.num_used:
                    raise DataError(
                        f"{source.source.path}: no row of the whole source can be used ({tally}); "
                        "raise model.max_length, or set data.overlong to truncate"
                    ) from None
                continue
            tally.num_used += part.num_used
            return kept

    def state(self) -> dict[str, Any]:
        """Plain values; `restore` goes on from here."""
        return {"rows": self._rows.state(), "num_used": self._tally.num_used}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Reads past what was taken. Raises DataError where that is no longer what it was."""
        self._rows = StreamingRows.restore(state["rows"], self._open)
        self._tally.num_used = state["num_used"]

    def _open(self) -> Iterator[Any]:
        return shapes.demonstrations(read_rows(self._source.source, resolve=str), tally=self._tally.part())


@dataclass(frozen=True)
class SftJob:
    """What each rank is sent."""

    setup: SftSetup
    data: Source
    folder: str
    checkpoints: FitCheckpoints


def run_sft(context: RunContext, stage: SftStage) -> None:
    """Artifact: `policy`, a Hugging Face folder with the tokenizer beside the weights."""
    data, num_steps = _data(context, stage, _source(context, stage))
    target = context.stage_folder(stage.name) / "policy"
    cached = _cache_folder(context, stage, data.sequences) if stage.cache and isinstance(data, InMemory) else None
    if cached and cached.exists():
        context.progress.say(f"{stage.name}: taken from {cached}, made earlier with the same data and settings")
        with written_aside(target) as folder:
            shutil.copytree(cached, folder)
        return
    with written_aside(target) as folder:
        context.template().save_tokenizer(folder)
        checkpoints = FitCheckpoints.of(context, stage.name, data.fingerprints(), beside={"policy": folder})
        _fit(context, stage, SftJob(_setup(context, stage, num_steps), data, str(folder), checkpoints))
        if cached:
            with written_aside(cached) as copy:
                shutil.copytree(folder, copy)


def fit(job: SftJob, report: Callable[[Any], None]) -> None:
    """One rank's work, to its end."""
    engine, tally = SftEngine(job.setup), Tally()
    with last_good_kept(lambda: engine.save(job.folder)):
        job.checkpoints.steps(engine, job.data.batches(tally), job.setup.total_steps, report)
    engine.save(job.folder)
    if tally:
        report(tally)


def _source(context: RunContext, stage: SftStage) -> DataSource:
    source = stage.data or context.config.data.demonstrations
    if source is None:
        raise DataError(f"stage {stage.name} needs rows to fit: set data.demonstrations, or the stage's data")
    return source


def _data(context: RunContext, stage: SftStage, source: DataSource) -> tuple[Source, int]:
    """Where batches come from, and how many optimiser steps there are."""
    if source.streaming:
        if is_sample_file(Path(context.locate(source.path))):
            raise DataError(f"{source.path}: stored samples are read whole, by their tokens; set streaming to false")
        assert stage.max_steps is not None  # the config sees to it
        data = context.config.data
        streamed = Streamed(
            source=source.model_copy(update={"path": context.locate(source.path)}),
            tokenizer=context.tokenizer_path,
            trust_remote_code=context.config.model.trust_remote_code,
            chat_template=data.chat_template,
            max_length=context.config.model.max_length,
            overlong=data.overlong,
            room=context.config.response_room,
            batch_size=stage.batch_size,
        )
        return streamed, stage.max_steps
    sequences = load_demonstrations(context, stage.name).train if stage.data is None else sequences_of(context, source)
    batch_size = min(stage.batch_size, len(sequences))
    num_steps = stage.epochs * -(-len(sequences) // batch_size)
    in_memory = InMemory(sequences, batch_size, context.config.seed)
    return in_memory, min(num_steps, stage.max_steps or num_steps)


def _setup(context: RunContext, stage: SftStage, total_steps: int) -> SftSetup:
    return SftSetup(
        path=_start(context, stage),
        scratch=_architecture(context, stage),
        model=context.config.model,
        learner=context.config.learner,
        optimizer=stage.optimizer,
        total_steps=total_steps,
        seed=context.config.seed,
    )


def _start(context: RunContext, stage: SftStage) -> str | None:
    """The folder or hub name of the weights to start from; None from scratch."""
    return None if stage.scratch else locate_model(context, stage.policy or context.config.model.path)


def _fit(context: RunContext, stage: SftStage, job: SftJob) -> None:
    if context.config.placement.colocate:
        context.close_sampler()  # Ray Train takes the GPUs
    done = job.checkpoints.done
    with context.progress.stage(stage.name, total=job.setup.total_steps) as bar:
        bar.update(advance=done)

        def on_report(metrics: Metrics | Tally) -> None:
            nonlocal done
            if isinstance(metrics, Tally):  # of a stream, at its end
                tell(context, _source(context, stage), metrics, "; a row counts each time that it is read")
                return
            context.tracker.log(stage.name, 0, done, metrics, job.setup.total_steps)
            done += 1
            bar.update(advance=1, note={"nll": values(metrics).get("nll_token", math.nan)})

        context.fleet.run_ranks(fit, job, on_report)


def _architecture(context: RunContext, stage: SftStage) -> dict[str, Any] | None:
    """The scratch keys, with the tokenizer's vocabulary and special tokens where they are not set."""
    if stage.scratch is None:
        return None
    settings = {**context.template().model_settings(), **stage.scratch}
    check_scratch(context, stage.name, settings["vocab_size"])
    return settings


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
        "tokenizer": _tokenizer_digests(context.template()),
    }
    start = _start(context, stage)
    if start is not None:
        settings["start"] = _digests(Path(start), "config.json", "*.safetensors", "*.bin") or start
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for array in (sequences.tokens.values, sequences.tokens.lengths, sequences.prompt_lengths):
        digest.update(array.tobytes())
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    root = Path(os.environ.get("RAYALIGN_CACHE") or caches / "rayalign")
    return root / "sft" / digest.hexdigest()[:24]


def _tokenizer_digests(template: Template) -> list[str]:
    """What the tokenizer and its chat template say, which are saved beside the weights."""
    with tempfile.TemporaryDirectory() as folder:
        template.save_tokenizer(folder)
        return _digests(Path(folder), "*")


def _digests(folder: Path, *patterns: str) -> list[str]:
    files = sorted(file for pattern in patterns for file in folder.glob(pattern) if file.is_file())
    return [f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files]
