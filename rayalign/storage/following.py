"""Copies what a run folder has to its mirror while the run goes on: a thread that looks, sends, and removes what is old."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rayalign.storage.checkpoints import CHECKPOINTS, Checkpoint, CheckpointStore, best_of
from rayalign.storage.mirror import (
    DONE,
    Bundle,
    Changed,
    Mirror,
    Signature,
    checkpoint_bundle,
    same_files,
    stage_bundle,
)
from rayalign.storage.remote import Unreachable

LOOK_EVERY_S = 1.0
PAUSES_S = (1.0, 4.0)  # before the second and the third attempt


class Superseded(Exception):
    """The run is ending, and has something newer to send than what is on its way."""


class Following:
    """Keeps the mirror at what the run folder has: finished stages, the newest checkpoint, the best.

    It looks at the folder, so that it does not matter which process commits a checkpoint. One copy at a time; the
    checkpoint that is being copied is held, and when its copy is there the newest of then is next.

    Args:
        folder: the run's.
        settings: of each stage by name, in their order.
        tell: shows a line.
    """

    def __init__(
        self, mirror: Mirror, folder: Path, settings: Mapping[str, Any], *, keep: int, tell: Callable[[str], None]
    ) -> None:
        self._mirror, self._folder, self._settings, self._keep, self._tell = mirror, folder, settings, keep, tell
        self._sent: dict[str, Signature] = {}
        self._refused: list[tuple[str, Signature]] | None = None  # what there was to send when the store failed
        self._lost = False  # since a failure that was told
        self._last_try, self._leave = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name="mirror", daemon=True)

    def start(self) -> None:
        """Begins; what is there already is not sent again."""
        for bundle in self._wanted():
            there = self._mirror.there.get(bundle.key)
            if there is not None and same_files(bundle, there) and there.get("done", True):
                self._sent[bundle.key] = bundle.signature
        self._thread.start()

    def finish(self, left_s: Callable[[], float]) -> list[str]:
        """Waits until all is there, the store has failed once more, or `left_s()` is not above 0; the keys that are missing.

        The thread is left behind where time runs out: it holds nothing that a next start needs.
        """
        self._last_try.set()
        while self._thread.is_alive() and left_s() > 0:
            self._thread.join(timeout=0.1)
        self._leave.set()
        return [bundle.key for bundle in self._waiting()]

    @property
    def busy(self) -> bool:
        """Whether something is not there yet."""
        return bool(self._waiting())

    def _follow(self) -> None:
        while not self._leave.is_set():
            ending = self._last_try.is_set()
            waiting = self._waiting()
            tried = [(bundle.key, bundle.signature) for bundle in waiting]
            if waiting and (ending or tried != self._refused):
                self._refused = None if self._copied(waiting[0]) else tried
                if self._refused is None:
                    continue
            if ending:
                return
            self._last_try.wait(LOOK_EVERY_S)

    def _copied(self, bundle: Bundle) -> bool:
        """Whether a bundle is there, or gone from here, after some attempts; that the store fails is told once."""
        for pause_s in (*PAUSES_S, None):
            try:
                self._copy(bundle)
            except (FileNotFoundError, Superseded):
                return True  # newer ones have taken its place; the next look finds them
            except (Unreachable, OSError) as error:
                if pause_s is not None and not self._leave.wait(pause_s):
                    continue
                if not self._lost and not self._leave.is_set():
                    self._tell(f"warning: checkpoints.mirror: {error}; the run goes on, and tries again when there is more")
                self._lost = True
                return False
            if self._lost:
                self._tell(f"checkpoints.mirror: {self._mirror.remote.shown} takes copies again")
                self._lost = False
            return True
        return False

    def _copy(self, bundle: Bundle) -> None:
        parts = bundle.key.split("/")
        stage = parts[1] if parts[0] == CHECKPOINTS and len(parts) == 3 else None

        def between() -> None:
            if self._leave.is_set() or (self._last_try.is_set() and bundle.key not in {b.key for b in self._wanted()}):
                raise Superseded

        try:
            with self._store(stage).held(int(parts[2])) if stage else contextlib.nullcontext():
                self._mirror.send(bundle, self._folder, between)
        except Changed:
            if bundle.unchanged():  # no newer one has taken its place: the disk gives other bytes than were written
                self._tell(f"warning: {bundle.folder} does not have the content that was written; no copy is made of it")
                self._sent[bundle.key] = bundle.signature
            return
        self._sent[bundle.key] = bundle.signature
        if stage is not None:
            self._mirror.prune(stage, self._keep)
        elif bundle.manifest["done"]:
            self._mirror.prune(bundle.key, 0)  # the stage's artifacts are there: nobody goes on from its checkpoints

    def _waiting(self) -> list[Bundle]:
        return [bundle for bundle in self._wanted() if self._sent.get(bundle.key) != bundle.signature]

    def _wanted(self) -> list[Bundle]:
        """What a resumption needs, most important first."""
        return [bundle for stage in self._settings for bundle in self._wanted_of(stage)]

    def _wanted_of(self, stage: str) -> Iterator[Bundle]:
        folder = self._folder / stage
        found = [] if (folder / DONE).exists() else self._store(stage).known()
        for checkpoint in _once(found):
            with contextlib.suppress(FileNotFoundError):  # it has just gone, or has lost a file
                yield checkpoint_bundle(stage, checkpoint)
        if found or (folder / DONE).exists():  # a stage that would begin again needs none of what it has written
            with contextlib.suppress(FileNotFoundError):  # the stage has just replaced it; the next look finds it
                if bundle := stage_bundle(stage, folder, self._settings[stage]):
                    yield bundle

    def _store(self, stage: str) -> CheckpointStore:
        return CheckpointStore(self._folder / CHECKPOINTS / stage, keep=self._keep)


def _once(found: list[Checkpoint]) -> list[Checkpoint]:
    """The newest, and the best where it is another."""
    best = best_of(found)
    return found[-1:] + ([best] if best and best.step != found[-1].step else [])
