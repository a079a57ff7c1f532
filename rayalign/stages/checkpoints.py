"""Saving a loop while it runs, and going on from what was saved; `fit_checkpoints` does so for what ranks run by themselves.

A checkpoint is begun (every worker copies its state to host memory), written while the stage goes on, and committed when
all have written. What it holds of the loop itself is a few plain values; see `rayalign.storage.checkpoints`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rayalign import __version__
from rayalign.config.checkpoints import CheckpointConfig
from rayalign.config.run import RunConfig
from rayalign.errors import Stopped, UserError
from rayalign.ports import Resumable, Workers
from rayalign.stages.context import RunContext
from rayalign.storage.checkpoints import CHECKPOINTS, Checkpoint, CheckpointStore, Files
from rayalign.storage.differences import Values, differences


@dataclass
class Place:
    """Where a loop is: `done` steps of this round, which has `num_steps`."""

    round: int = 0
    done: int = 0
    num_steps: int = 0


@dataclass
class Schedule:
    """When a checkpoint is due: by steps, or by the seconds since the last one."""

    config: CheckpointConfig
    _last_s: float = 0.0

    def __post_init__(self) -> None:
        self.saved()

    def due(self, step: int) -> bool:
        """Whether `step`, which is done, is one to save."""
        config = self.config
        by_steps = config.every_steps is not None and step % config.every_steps == 0
        return by_steps or (config.every_s is not None and time.monotonic() - self._last_s >= config.every_s)

    def saved(self) -> None:
        """The time runs anew."""
        self._last_s = time.monotonic()


def checkpoint_store(context: RunContext, stage: str) -> CheckpointStore:
    """The checkpoints of a stage of this run."""
    return checkpoint_store_of(context.folder, context.config, stage)


def checkpoint_store_of(folder: Path, config: RunConfig, stage: str) -> CheckpointStore:
    """The checkpoints of a stage of the run in `folder`."""
    return CheckpointStore(folder / CHECKPOINTS / stage, keep=config.checkpoints.keep)


def find_checkpoint(context: RunContext, stage: str, data: Mapping[str, str]) -> Checkpoint | None:
    """What an interrupted stage goes on from, with the metrics cut back to it; None where it begins.

    Raises UserError where settings or data are no longer what they were, unless `resume` is `changed`.
    """
    store, resume = checkpoint_store(context, stage), context.config.resume
    if resume == "anew" and not context.restarted:
        store.clear()
    found = store.newest(context.progress.say, needs=("settings", "data", "records", "loop"))
    if found is not None and resume != "changed":
        _check_same(stage, found, plain_values(context.settings), data)
    records = found.manifest["records"] if found else 0
    context.tracker.keep(stage, records)
    if found is not None:
        if (lacking := records - context.tracker.count(stage)) > 0:
            context.progress.say(f"{stage}: the metrics of {lacking} steps went down with the run, and stay missing")
        context.progress.say(f"{stage}: goes on after step {found.step}, from {found.folder}")
    return found


def changed_data(found: Checkpoint, data: Mapping[str, str]) -> list[str]:
    """Names of what is no longer learned from as it was when a checkpoint was made."""
    before = found.manifest["data"]
    return sorted(name for name in before.keys() | data.keys() if before.get(name) != data.get(name))


def manifest_of(context: RunContext, stage: str, data: Mapping[str, str]) -> dict[str, Any]:
    """What every checkpoint of a stage says of where it comes from."""
    return {"stage": stage, "rayalign": __version__, "settings": plain_values(context.settings), "data": dict(data)}


class LoopCheckpoints:
    """The checkpoints of a loop, written by its groups at the controller's word.

    Args:
        groups: the workers that have something to save, by role.
        data: fingerprints of what is learned from, by name.
    """

    def __init__(
        self, context: RunContext, stage: str, groups: Mapping[str, Workers[Any]], data: Mapping[str, str]
    ) -> None:
        self._context, self._stage, self._groups, self._data = context, stage, groups, data
        self._store = checkpoint_store(context, stage)
        self._schedule = Schedule(context.config.checkpoints)
        self._begun: tuple[Path, dict[str, Any]] | None = None
        self._saves = self._can_save()
        self._told_of_best = False
        self.changed: list[str] = []  # data that the run goes on with, and that was another (resume=changed)

    def resume(self) -> Values | None:
        """The loop's own values of the newest checkpoint, once all workers have taken theirs; None at a beginning."""
        found = find_checkpoint(self._context, self._stage, self._data)
        if found is None:
            return None
        self.changed = changed_data(found, self._data)
        world = {role: len(workers) for role, workers in self._groups.items()}
        if world != found.manifest["world"]:
            self._context.progress.say(
                f"{self._stage}: saved by {found.manifest['world']} workers, taken up by {world}: sums over ranks are "
                "rounded otherwise, so numbers agree to rounding and not bit by bit"
            )
        for role, workers in self._groups.items():
            _on_all(workers, _load_state, (str(found.folder),), f"load the {role}'s checkpoint")
        return found.manifest["loop"]

    def after_step(self, step: int, loop: Callable[[], Values]) -> None:
        """Commits what has been written, and begins the next where it is due. `loop()` gives the loop's own values."""
        self._commit(wait=False)
        stopping = self._context.stopping
        if self._saves and (stopping or self._schedule.due(step)):
            self._begin(step, loop(), score=None)
        if stopping:
            self._commit(wait=True)
            told = f"is saved after step {step}" if self._saves else "begins again at the next start"
            raise Stopped(f"stage {self._stage} was asked to stop, and {told}")

    def after_round(self, step: int, loop: Callable[[], Values], newest: Mapping[str, float]) -> None:
        """Where `checkpoints.best` names a metric that this round has measured: saves what it was measured on."""
        best = self._context.config.checkpoints.best
        if not self._saves or best is None:
            return
        if math.isfinite(newest.get(best, math.nan)):
            self._begin(step, loop(), score=newest[best])
        elif not self._told_of_best:
            self._told_of_best = True
            measured = ", ".join(sorted(newest))
            self._context.progress.say(
                f"warning: checkpoints.best: {self._stage} has measured no {best} in this round, so none is kept for it; "
                f"there are {measured}"
            )

    def best(self) -> Checkpoint | None:
        """The one where `checkpoints.best` was highest; said, because its models are about to be taken."""
        self.finish()
        best = self._store.best()
        if best is not None:
            metric = self._context.config.checkpoints.best
            where = f"step {best.step}, where {metric} was {best.manifest['score']:.3g}"
            self._context.progress.say(f"{self._stage}: keeps the models of {where}")
        return best

    def has_models(self) -> bool:
        """Whether the stage has left models already; those of another machine come only with a mirror that was complete."""
        return (self._context.stage_folder(self._stage) / "policy").is_dir()

    def finish(self) -> None:
        """Waits for what is being written."""
        self._commit(wait=True)

    def _can_save(self) -> bool:
        """Whether all workers can; says which cannot."""
        for role, workers in self._groups.items():
            if not all(_on_all(workers, _is_resumable, (), "start")):
                self._context.progress.say(
                    f"{self._stage}: your {role} actor has no save_state, state_files and load_state (ports.Resumable), so "
                    "the stage has no checkpoints, and begins again where it is interrupted"
                )
                return False
        return True

    def _begin(self, step: int, loop: Values, *, score: float | None) -> None:
        self._commit(wait=True)
        if not self._context.folder.is_dir():
            raise UserError(f"{self._context.folder}: the run folder has gone, or was moved while the run went on")
        part = self._store.begin(step)
        for role in self._groups:
            self._context.template().save_tokenizer(part / role)
        manifest = manifest_of(self._context, self._stage, self._data) | {
            "step": step,
            "score": score,
            "records": self._context.tracker.count(self._stage),
            "world": {role: len(workers) for role, workers in self._groups.items()},
            "loop": plain_values(loop),
        }
        for role, workers in self._groups.items():
            _on_all(workers, _save_state, (str(part),), f"save the {role}'s checkpoint")
        self._begun = part, manifest
        self._schedule.saved()

    def _commit(self, *, wait: bool) -> None:
        if self._begun is None:
            return
        part, manifest = self._begun
        files: Files = {}
        for workers in self._groups.values():
            for found in _on_all(workers, _state_files, (wait,), "write a checkpoint"):
                if found is None:
                    return
                files |= found
        self._store.commit(part, manifest, files)
        self._begun = None


class Saves(Protocol):
    """Groups whose models become the stage's artifacts."""

    def save(self) -> None:
        """As they are."""

    def save_from(self, checkpoint: Path) -> None:
        """As they were."""


def end_early(checkpoints: LoopCheckpoints, groups: Saves, *, saved: bool) -> None:
    """A stage that stops at an alarm leaves the best models that are known, else the last saved, else the present ones."""
    if best := checkpoints.best():
        groups.save_from(best.folder)
    elif not (saved and checkpoints.has_models()):
        groups.save()


def _check_same(stage: str, found: Checkpoint, settings: Values, data: Mapping[str, str]) -> None:
    before = {**found.manifest["settings"], **{f"content of {k}": v for k, v in found.manifest["data"].items()}}
    now = {**settings, **{f"content of {k}": v for k, v in data.items()}}
    if changed := differences(before, now):
        raise UserError(
            f"{found.folder}: stage {stage} was interrupted with another {'; '.join(changed)}. Set resume=changed to go on "
            "nevertheless, resume=anew to begin the stage again, or name= for a new run"
        )


def plain_values(values: Any) -> Any:
    """As it comes back from a JSON file."""
    return json.loads(json.dumps(values))


def _on_all(workers: Workers[Any], method: Any, arguments: tuple[Any, ...], phase: str) -> list[Any]:
    return workers.submit(method, [arguments] * len(workers), phase=phase).result()


def _is_resumable(worker: Any) -> bool:
    return isinstance(worker, Resumable)


def _save_state(worker: Any, folder: str) -> None:
    worker.save_state(folder)


def _state_files(worker: Any, wait: bool) -> Files | None:
    return worker.state_files(wait)


def _load_state(worker: Any, folder: str) -> None:
    worker.load_state(folder)
