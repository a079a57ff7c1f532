"""The checkpoints of one stage: each a folder with a manifest, written aside, flushed, and renamed into place.

A folder without a manifest is no checkpoint, and a manifest names every file with its size and hash: whatever a crash,
a full disk or a bad sector left behind is told apart from what can be loaded.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayalign.errors import UserError
from rayalign.storage.aside import flush, remove, write_json

MANIFEST = "manifest.json"
FORMAT = 1
STATE = "state"  # what only a resumption needs; beside it lie Hugging Face folders
NAME = re.compile(r"\d{8}")
DAMAGED = "damaged-"  # before the name of one that cannot be loaded
BEFORE = ".before"  # ending of a checkpoint that one of the same step replaces
CHECKPOINTS = "checkpoints"  # of a run folder: holds a folder for each stage
HELD = ".held"  # names the checkpoint that is being copied elsewhere
CHUNK = 2**22  # bytes

Files = dict[str, tuple[int, str]]  # path inside the checkpoint: (bytes, SHA-256)


class Damaged(Exception):
    """A checkpoint that cannot be loaded, and why."""


class OtherFormat(Damaged):
    """A checkpoint of another version of this program, which may be whole."""


@dataclass(frozen=True)
class Checkpoint:
    """One that is whole."""

    folder: Path
    manifest: Mapping[str, Any]

    @property
    def step(self) -> int:
        """Optimiser steps of its stage."""
        return int(self.manifest["step"])

    @property
    def state(self) -> Path:
        """The folder of what a resumption needs."""
        return self.folder / STATE


class CheckpointStore:
    """The checkpoints of a stage in `folder`: the `keep` newest, and the best by the score that they were given.

    Every method may be interrupted at any moment, by a kill or a full disk: what was a checkpoint before still is one.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into; `commit` makes it one."""
        part = self.part(step)
        remove(part)
        (part / STATE).mkdir(parents=True)
        return part

    def part(self, step: int) -> Path:
        """Where the checkpoint of `step` is written."""
        return self.folder / f".{step:08d}.part"

    def commit(self, part: Path, manifest: Mapping[str, Any], files: Files) -> Checkpoint:
        """Makes what was written a checkpoint, in the place of one of the same step, and removes those past `keep`.

        `manifest` has at least `step` (int) and `score` (a number to compare by, larger is better, or None).
        """
        whole = {"format": FORMAT, **manifest, "files": {name: list(found) for name, found in sorted(files.items())}}
        (part / MANIFEST).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        flush(part / MANIFEST)
        for folder in {part / Path(name).parent for name in files} | {part}:
            flush(folder)
        target = self.folder / f"{manifest['step']:08d}"
        if target.exists():
            before = self.folder / f".{target.name}{BEFORE}"
            remove(before)
            target.rename(before)
        part.rename(target)
        flush(self.folder)
        self._prune(but=target)
        return Checkpoint(target, whole)

    def newest(self, tell: Callable[[str], None], needs: Iterable[str] = ()) -> Checkpoint | None:
        """The newest that can be gone on from. A damaged one is told and put aside, and the one before it taken.

        Where there is none, the stage begins: models of an earlier time that it ran to its end are removed. `needs` are keys
        without which a manifest is damaged. Raises UserError for one that another version wrote.
        """
        for aside in self.folder.glob(f".*{BEFORE}"):  # by a commit that was interrupted
            target = self.folder / aside.name[1 : -len(BEFORE)]
            if not target.exists():
                aside.rename(target)
        ended, num_damaged = [], 0
        for folder in reversed(self._folders()):
            try:
                checkpoint = read(folder)
                if checkpoint.manifest.get("ended"):
                    ended.append(folder)
                    continue
                if lacking := [key for key in needs if key not in checkpoint.manifest]:
                    raise Damaged(f"{MANIFEST} has no {lacking[0]!r}")
                verify(checkpoint)
            except OtherFormat as error:
                raise UserError(
                    f"checkpoint {folder}: {error}; go on with the version of rayalign that wrote it, or set resume=anew"
                ) from None
            except Damaged as damage:
                aside = folder.with_name(DAMAGED + folder.name)
                remove(aside)
                folder.rename(aside)
                num_damaged += 1
                tell(f"warning: checkpoint {folder} is damaged ({damage}) and is called {aside.name} now")
                continue
            if num_damaged:
                tell(f"warning: the one before it is used, {folder}")
            return checkpoint
        if num_damaged:
            tell("warning: no checkpoint is left that can be loaded: it begins from the start")
        for folder in ended:
            remove(folder)
        return None

    def drop_states(self) -> None:
        """The stage is done: removes what only a resumption needs and what is damaged, and keeps the models."""
        for checkpoint in self._readable():
            if not checkpoint.manifest.get("ended"):
                files = {name: file for name, file in checkpoint.manifest["files"].items() if not is_state(name)}
                write_json(checkpoint.folder / MANIFEST, {**checkpoint.manifest, "ended": True, "files": files})
            remove(checkpoint.state)
        for damaged in self.folder.glob(f"{DAMAGED}*"):
            remove(damaged)
        self._remove_parts()

    def clear(self) -> None:
        """Removes them all."""
        remove(self.folder)

    def best(self) -> Checkpoint | None:
        """The one with the highest score; None where none was given any. Its files are not verified."""
        return best_of(self.known())

    def known(self) -> list[Checkpoint]:
        """All that can be gone on from, by their manifests, oldest first. Their files are not verified."""
        return [checkpoint for checkpoint in self._readable() if not checkpoint.manifest.get("ended")]

    @contextlib.contextmanager
    def held(self, step: int) -> Iterator[None]:
        """While the block runs the checkpoint of `step` stays, whatever newer ones any process commits."""
        file = self.folder / HELD
        file.write_text(f"{step:08d}", encoding="utf-8")
        try:
            yield
        finally:
            file.unlink(missing_ok=True)

    def _folders(self) -> list[Path]:
        """Oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    def _readable(self) -> Iterator[Checkpoint]:
        for folder in self._folders():
            try:
                yield read(folder)
            except Damaged:
                continue

    def _prune(self, *, but: Path) -> None:
        best, held = self.best(), self._held()
        for folder in self._folders()[: -self._keep]:
            if folder != but and folder.name != held and (best is None or folder != best.folder):
                remove(folder)
        self._remove_parts()

    def _held(self) -> str:
        try:
            return (self.folder / HELD).read_text(encoding="utf-8")
        except FileNotFoundError:
            return ""

    def _remove_parts(self) -> None:
        for pattern in (".*.part", f".*{BEFORE}"):
            for part in self.folder.glob(pattern):
                remove(part)


def best_of(checkpoints: Iterable[Checkpoint]) -> Checkpoint | None:
    """The one with the highest score, the later of equals; None where none was given any."""
    scored = [c for c in checkpoints if c.manifest.get("score") is not None]
    return max(scored, key=lambda c: (c.manifest["score"], c.step), default=None)


def read(folder: Path) -> Checkpoint:
    """A checkpoint by its manifest alone. Raises Damaged."""
    try:
        content = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise Damaged(f"{MANIFEST}: {error.strerror}") from None
    return Checkpoint(folder, parse_manifest(content))


def parse_manifest(content: bytes) -> dict[str, Any]:
    """What a manifest says. Raises Damaged."""
    try:
        manifest = json.loads(content)
        if manifest["format"] != FORMAT:
            raise OtherFormat(f"its format is {manifest['format']}, this version reads {FORMAT}")
        if not isinstance(manifest["step"], int) or not isinstance(manifest["files"], dict):
            raise Damaged("its manifest is not one of this program")
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"{MANIFEST} is torn") from None
    return dict(manifest)


def verify(checkpoint: Checkpoint) -> None:
    """Raises Damaged unless every file is there with the bytes that were written."""
    for name, (size, digest) in checkpoint.manifest["files"].items():
        path = checkpoint.folder / name
        if not path.is_file():
            raise Damaged(f"{name} is missing")
        if path.stat().st_size != size:
            raise Damaged(f"{name} has {path.stat().st_size} bytes of {size}")
        if file_hash(path) != digest:
            raise Damaged(f"{name} does not have the content that was written")


def is_state(name: str) -> bool:
    """Whether a file of a checkpoint is of what only a resumption needs."""
    return name.startswith(f"{STATE}/")


def files_below(root: Path, *folders: Path) -> Files:
    """Flushes all files below `folders`, and gives their sizes and hashes under their paths from `root`."""
    found: Files = {}
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            found[path.relative_to(root).as_posix()] = flushed(path)
    return found


def flushed(path: Path) -> tuple[int, str]:
    """Waits until a file is on the disk; its size and hash."""
    flush(path)
    return path.stat().st_size, file_hash(path)


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
