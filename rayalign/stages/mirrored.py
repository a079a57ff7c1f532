"""A run and its mirror (`checkpoints.mirror`): what it takes from there, and what it copies there while it goes on."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rayalign.config.run import RunConfig
from rayalign.errors import Stopped, UserError
from rayalign.stages.checkpoints import checkpoint_store_of, plain_values
from rayalign.stages.context import STOP_FILE
from rayalign.storage.aside import written_aside
from rayalign.storage.checkpoints import Checkpoint, Damaged, best_of
from rayalign.storage.differences import differences
from rayalign.storage.following import Following
from rayalign.storage.mirror import DONE, Mirror
from rayalign.storage.remote import Remote, Unreachable
from rayalign.telemetry.progress import Progress

MARGIN_S = 0.5  # of the grace after SIGTERM, for the run to end in


class MirroredRun:
    """The mirror of one run.

    Args:
        folder: the run's, here.
        settings: what each stage's artifacts depend on, by its name, in the order of stages.
    """

    def __init__(self, config: RunConfig, folder: Path, settings: Mapping[str, Any], mirror: Mirror) -> None:
        self._config, self._folder, self._mirror = config, folder, mirror
        self._settings = {stage: plain_values(values) for stage, values in settings.items()}

    @property
    def finished(self) -> set[str]:
        """The stages that have finished, by the mirror."""
        return {key for key, manifest in self._mirror.there.items() if key in self._settings and manifest.get("done")}

    def check_same_run(self) -> None:
        """Raises UserError where what is there was made with other settings, as a run folder's is refused."""
        for stage, settings in self._settings.items():
            checkpoints = self._mirror.checkpoints(stage)
            begun = [] if self._config.resume != "auto" or stage in self.finished else checkpoints[-1:]
            done = [Checkpoint(Path(stage), self._mirror.there[stage])] if stage in self.finished else []
            for found in [*done, *begun]:
                if changed := differences(found.manifest["settings"], settings):
                    where = self._mirror.shown(found.folder.as_posix())
                    how = "finished" if done else "was interrupted"
                    otherwise = "" if done else "resume=changed to go on nevertheless, resume=anew to begin it again, "
                    raise UserError(
                        f"checkpoints.mirror: {where}: stage {stage} {how} there with another {'; '.join(changed)}. Set "
                        f"{otherwise}name= for a new run, or another checkpoints.mirror"
                    )

    def take(self, progress: Progress) -> None:
        """Brings finished stages and newer checkpoints into the run folder, each whole or not at all.

        Raises UserError where the mirror fails: what would be repeated otherwise is more than the user may want.
        """
        with _readable(self._mirror):
            taken = [self._take_stage(stage, progress) for stage in self._settings]
            if any(taken):
                self._mirror.fetch_beside(self._folder)
            if self._config.resume == "anew":
                for stage in self._settings:
                    if not (self._folder / stage / DONE).exists():
                        self._mirror.prune(stage, 0)

    @contextlib.contextmanager
    def followed(self, progress: Progress) -> Iterator[None]:
        """Copies what the block writes to the mirror; at its end waits for the rest, and tells what is missing there."""
        keep = self._config.checkpoints.keep
        following = Following(self._mirror, self._folder, self._settings, keep=keep, tell=progress.say)
        following.start()
        until = math.inf
        try:
            yield
        except (Stopped, KeyboardInterrupt):
            until = time.monotonic() + self._config.checkpoints.grace_s
            raise
        finally:
            self._wait(following, until, progress)

    def _wait(self, following: Following, until: float, progress: Progress) -> None:
        def left_s() -> float:
            return min(until - time.monotonic(), self._grace_left_s())

        waits = progress.stage(f"copying to {self._mirror.remote.shown}") if following.busy else contextlib.nullcontext()
        with waits:
            missing = following.finish(left_s)
        if missing:
            progress.say(
                f"warning: checkpoints.mirror: {self._mirror.remote.shown} lacks {', '.join(missing)}; {self._folder} has "
                "all, and the next start with that folder copies it"
            )

    def _grace_left_s(self) -> float:
        """Seconds that a run has which was asked to stop; many where it was not."""
        try:
            asked = (self._folder / STOP_FILE).stat().st_mtime
        except FileNotFoundError:
            return math.inf
        grace_s = self._config.checkpoints.grace_s
        return min(grace_s, grace_s - (time.time() - asked)) - MARGIN_S

    def _take_stage(self, stage: str, progress: Progress) -> bool:
        """Whether anything was brought."""
        if (self._folder / stage / DONE).exists():
            return False
        if stage in self.finished:
            return self._take_artifacts(stage, progress)
        if self._config.resume == "anew":
            return False
        newest = self._take_newest(stage, progress)
        if newest and stage in self._mirror.there:  # models of the rounds so far
            self._take_artifacts(stage, progress)
        return newest

    def _take_artifacts(self, stage: str, progress: Progress) -> bool:
        try:
            with progress.stage(f"bringing {stage} from {self._mirror.shown(stage)}"):
                with written_aside(self._folder / stage) as aside:
                    aside.mkdir()
                    self._mirror.fetch(stage, aside)
        except Damaged as damage:
            progress.say(f"warning: {self._mirror.shown(stage)} is damaged ({damage}), and left aside")
            del self._mirror.there[stage]
            return False
        return True

    def _take_newest(self, stage: str, progress: Progress) -> bool:
        """The newest checkpoint that is whole, where none here is as new, and the best besides."""
        here = checkpoint_store_of(self._folder, self._config, stage)
        newest_here = max((checkpoint.step for checkpoint in here.known()), default=-1)
        found = [checkpoint for checkpoint in self._mirror.checkpoints(stage) if checkpoint.step > newest_here]
        best = best_of(self._mirror.checkpoints(stage))
        for checkpoint in reversed(found):
            if self._take_checkpoint(stage, checkpoint, progress):
                if best is not None and best.step not in {c.step for c in here.known()}:
                    self._take_checkpoint(stage, best, progress)
                return True
        return False

    def _take_checkpoint(self, stage: str, checkpoint: Checkpoint, progress: Progress) -> bool:
        key = checkpoint.folder.as_posix()
        here = checkpoint_store_of(self._folder, self._config, stage)
        part = here.begin(checkpoint.step)
        try:
            with progress.stage(f"bringing {self._mirror.shown(key)}"):
                files = self._mirror.fetch(key, part)
        except Damaged as damage:
            progress.say(f"warning: checkpoint {self._mirror.shown(key)} is damaged ({damage}); the one before it is used")
            del self._mirror.there[key]
            return False
        here.commit(part, checkpoint.manifest, files)
        return True


@contextlib.contextmanager
def opened_mirror(
    config: RunConfig, folder: Path, settings: Mapping[str, Any], progress: Progress
) -> Iterator[MirroredRun | None]:
    """The run's mirror, if the config names one, once it has shown that it takes what is written.

    Raises UserError where it does not, or holds another run of this name.
    """
    uri = config.checkpoints.mirror
    if uri is None:
        yield None
        return
    address, question, options = uri.partition("?")
    whole = f"{address.rstrip('/')}/{config.name}{question}{options}"
    remote = Remote(whole, timeout_s=config.checkpoints.mirror_timeout_s)
    try:
        run = MirroredRun(config, folder, settings, _tried(remote, progress))
        run.check_same_run()
        yield run
    finally:
        remote.stop()


def _tried(remote: Remote, progress: Progress) -> Mirror:
    mirror = Mirror(remote)
    try:
        remote.probe()
        mirror.look(progress.say)
    except Unreachable as fault:
        raise UserError(
            f"checkpoints.mirror: {fault}; a run must be able to write, list, read and remove there: check the address, the "
            "bucket and the credentials in the environment, or unset it"
        ) from None
    return mirror


@contextlib.contextmanager
def _readable(mirror: Mirror) -> Iterator[None]:
    try:
        yield
    except Unreachable as fault:
        raise UserError(
            f"checkpoints.mirror: {fault}; try again, or unset checkpoints.mirror to go on with what is in the run folder"
        ) from None
