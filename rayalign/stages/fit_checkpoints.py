"""Checkpoints of what ranks run by themselves to its end: SFT, the fit of a reward, AVA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rayalign.config.checkpoints import CheckpointConfig
from rayalign.data.cursor import Cursor
from rayalign.engines.batching import Rank
from rayalign.errors import Stopped
from rayalign.stages.checkpoints import Schedule, changed_data, checkpoint_store, find_checkpoint, manifest_of
from rayalign.stages.context import RunContext
from rayalign.storage.checkpoints import MANIFEST, CheckpointStore, Files
from rayalign.telemetry.metrics import Metrics


class Engine(Protocol):
    """A rank that takes steps, and can be saved."""

    def fit(self, batch: Any) -> Metrics:
        """One optimiser step."""

    def all_gather(self, value: Any) -> list[Any]:
        """One small value from each rank, in rank order."""

    def save_state(self, folder: str) -> None:
        """Begins to write what a resumption needs."""

    def state_files(self, wait: bool) -> Files | None:
        """What was written; None while that goes on."""

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint."""


class Batches(Protocol):
    """Where a rank's batches come from; every rank is given the same ones and takes its share of each."""

    def take(self) -> Any:
        """The next batch; there is no last one."""

    def state(self) -> dict[str, Any]:
        """Plain values; `restore` goes on from here."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""


class ShuffledBatches:
    """Batches of `size` out of `num_rows`, in shuffled epochs; `of_rows` makes a batch of row numbers."""

    def __init__(
        self, num_rows: int, size: int, of_rows: Callable[[np.ndarray], Any], *, seed: int, fingerprint: str
    ) -> None:
        self._size, self._of_rows, self._fingerprint = min(size, num_rows), of_rows, fingerprint
        self._cursor = Cursor(num_rows, seed=seed, fingerprint=fingerprint)

    def take(self) -> Any:
        """The next batch."""
        return self._of_rows(self._cursor.take(self._size))

    def state(self) -> dict[str, Any]:
        """Plain values; `restore` goes on from here."""
        return self._cursor.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken. Raises DataError over other data."""
        self._cursor = Cursor.restore(state, fingerprint=self._fingerprint)


@dataclass(frozen=True)
class FitCheckpoints:
    """How the ranks of a fit save themselves, and what they go on from; travels to each of them."""

    folder: str
    beside: Mapping[str, str]  # for each model that is saved, a folder of what lies beside its weights
    config: CheckpointConfig
    manifest: Mapping[str, Any]
    found: str | None  # the checkpoint to go on from
    stop_file: str
    done: int = 0  # steps of that checkpoint
    other_data: bool = False  # than it was made with: batches begin anew (resume=changed)

    @classmethod
    def of(
        cls, context: RunContext, stage: str, data: Mapping[str, str], *, beside: Mapping[str, Path]
    ) -> FitCheckpoints:
        """The plan of a stage. Raises UserError where its settings or data are no longer what they were."""
        found = find_checkpoint(context, stage, data)
        return cls(
            folder=str(checkpoint_store(context, stage).folder),
            beside={name: str(path) for name, path in beside.items()},
            config=context.config.checkpoints,
            manifest=manifest_of(context, stage, data),
            found=str(found.folder) if found else None,
            stop_file=str(context.stop_file),
            done=found.step if found else 0,
            other_data=bool(found and changed_data(found, data)),
        )

    def steps(self, engine: Engine, batches: Batches, num_steps: int, report: Callable[[Any], None]) -> None:
        """Takes `num_steps` optimiser steps in all, reporting each one's metrics; every rank calls it."""
        writer = _FitWriter(self, engine)
        if self.found is not None:
            engine.load_state(self.found)
            manifest = json.loads((Path(self.found) / MANIFEST).read_text(encoding="utf-8"))
            if not self.other_data:
                batches.restore(manifest["loop"])
        for step in range(self.done + 1, num_steps + 1):
            report(engine.fit(batches.take()))
            writer.after_step(step, batches, last=step == num_steps)


class _FitWriter:
    def __init__(self, plan: FitCheckpoints, engine: Engine) -> None:
        self._plan, self._engine = plan, engine
        self._store = CheckpointStore(Path(plan.folder), keep=plan.config.keep)
        self._schedule = Schedule(plan.config)
        self._is_first = Rank.from_environment().rank == 0
        self._begun: tuple[Path, dict[str, Any]] | None = None

    def after_step(self, step: int, batches: Batches, *, last: bool) -> None:
        """As LoopCheckpoints; rank 0 decides, by its clock and the file that asks the run to stop."""
        self._commit(wait=last)
        stop = Path(self._plan.stop_file).exists()
        due, stop = self._engine.all_gather((not last and (stop or self._schedule.due(step)), stop))[0]
        if due:
            self._begin(step, batches.state())
        if stop and not last:
            self._commit(wait=True)
            raise Stopped(f"stage {self._plan.manifest['stage']} was asked to stop, and is saved after step {step}")

    def _begin(self, step: int, loop: Mapping[str, Any]) -> None:
        self._commit(wait=True)
        part = self._store.part(step)
        if self._is_first:
            self._store.begin(step)
            for name, folder in self._plan.beside.items():
                shutil.copytree(folder, part / name)
        self._engine.all_gather(None)  # the folder is there before any rank writes into it
        self._engine.save_state(str(part))
        self._begun = part, {**self._plan.manifest, "step": step, "score": None, "records": step, "loop": loop}
        self._schedule.saved()

    def _commit(self, *, wait: bool) -> None:
        if self._begun is None:
            return
        found = self._engine.all_gather(self._engine.state_files(wait))
        if any(files is None for files in found):
            return
        part, manifest = self._begun
        if self._is_first:
            files = {name: written for files in found for name, written in files.items()}
            self._store.commit(part, manifest | {"world": {"ranks": len(found)}}, files)
        self._begun = None
