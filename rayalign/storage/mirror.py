"""What a run has in a remote folder: checkpoints and finished stages, under the names that they have in the run folder.

RUN/checkpoints/STAGE/STEP and RUN/STAGE are bundles: folders that are whole where a manifest with every file's size and
SHA-256 lies in them. It is written last, and removed first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from rayalign.storage.aside import written_aside
from rayalign.storage.checkpoints import (
    CHECKPOINTS,
    FORMAT,
    MANIFEST,
    NAME,
    Checkpoint,
    Damaged,
    Files,
    best_of,
    parse_manifest,
)
from rayalign.storage.evaluation import EVALUATION_FILE, merge_evaluation
from rayalign.storage.remote import NotThere, Remote
from rayalign.storage.run_folder import ALARMS_FILE, METRICS_FILE, ROUNDS_FILE

DONE = "done.json"  # in the folder of a stage that has finished
# Of the run itself, that a resumed one goes on with.
BESIDE = (METRICS_FILE, ROUNDS_FILE, ALARMS_FILE, EVALUATION_FILE, "wandb_run_id", "mlflow_run_id")
Signature = tuple[tuple[str, int, int, int], ...]  # of each file: name, bytes, when it was changed, inode


class Changed(Exception):
    """A folder here is no longer what it was when its copy began."""


@dataclass(frozen=True)
class Bundle:
    """A folder here that is to be there, and what it was when it was looked at."""

    key: str
    folder: Path
    manifest: Mapping[str, Any]  # of a checkpoint with `files`; of a stage they are hashed as they are sent
    signature: Signature

    @property
    def names(self) -> list[str]:
        """Of its files."""
        return sorted(name for name, *_ in self.signature if name != MANIFEST)

    def unchanged(self) -> bool:
        """Whether the folder still holds these files."""
        return signature_of(self.folder, self.names) == tuple(s for s in self.signature if s[0] != MANIFEST)


def checkpoint_bundle(stage: str, checkpoint: Checkpoint) -> Bundle:
    """Of a checkpoint. Raises FileNotFoundError where it is gone."""
    names = [*checkpoint.manifest["files"], MANIFEST]
    key = f"{CHECKPOINTS}/{stage}/{checkpoint.folder.name}"
    return Bundle(key, checkpoint.folder, checkpoint.manifest, signature_of(checkpoint.folder, names))


def stage_bundle(stage: str, folder: Path, settings: Mapping[str, Any]) -> Bundle | None:
    """Of what a stage has written so far, with its end if it has one; None where there is nothing yet."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    shown = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not shown:
        return None
    manifest = {"format": FORMAT, "step": 0, "stage": stage, "settings": settings, "done": DONE in shown}
    return Bundle(stage, folder, manifest, signature_of(folder, shown))


def signature_of(folder: Path, names: Iterable[str]) -> Signature:
    """What tells the files from others of the same names. Raises FileNotFoundError."""
    stats = [(name, (folder / name).stat()) for name in sorted(names)]
    return tuple((name, found.st_size, found.st_mtime_ns, found.st_ino) for name, found in stats)


class Mirror:
    """The bundles of one run; `there` has the manifests of those that are whole, by key.

    Every method raises Unreachable where the store fails. None is called by two threads at a time.
    """

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.there: dict[str, dict[str, Any]] = {}
        self._begun: set[str] = set()  # keys of checkpoints that have any object
        self._sent: dict[str, tuple[Signature, tuple[int, str]]] = {}  # objects of this process: what of, and their hashes

    def look(self, tell: Callable[[str], None]) -> None:
        """Reads what is there; a manifest that is none is told, and counts as missing."""
        for name in self.remote.names():
            key = PurePosixPath(name).parent.as_posix()
            folders = name.split("/")
            if folders[0] == CHECKPOINTS and len(folders) > 3:
                self._begun.add("/".join(folders[:3]))
            if not name.endswith(f"/{MANIFEST}") or not _is_key(key):
                continue
            try:
                self.there[key] = parse_manifest(self.remote.read(name))
            except Damaged as damage:
                tell(f"warning: {self.shown(key)} is damaged ({damage}), and left aside")
            except NotThere:
                continue  # another run of this name is at work there, or has just ended

    def shown(self, key: str) -> str:
        """A bundle's address, for messages."""
        return f"{self.remote.shown}/{key}"

    def checkpoints(self, stage: str) -> list[Checkpoint]:
        """Those of a stage that are there, oldest first; their folders are keys."""
        start = f"{CHECKPOINTS}/{stage}/"
        return [Checkpoint(Path(key), self.there[key]) for key in sorted(self.there) if key.startswith(start)]

    def send(self, bundle: Bundle, beside: Path, between: Callable[[], None]) -> None:
        """Copies a folder there, with the files of the run in `beside`. Raises Changed, FileNotFoundError.

        What this process has sent already is not sent again, so that an interrupted copy goes on. `between` is called
        before each file, and may raise.
        """
        before = self.there.get(bundle.key, {}).get("files", {})
        self.remote.remove(f"{bundle.key}/{MANIFEST}")
        self.there.pop(bundle.key, None)
        if bundle.key.startswith(f"{CHECKPOINTS}/"):
            self._begun.add(bundle.key)
        files: Files = {}
        for name in bundle.names:
            between()
            files[name] = self._send_file(bundle.folder / name, f"{bundle.key}/{name}")
        expected = {name: tuple(found) for name, found in bundle.manifest.get("files", files).items()}
        if files != expected or not bundle.unchanged():
            raise Changed(f"{bundle.folder} changed while it was copied")
        self._send_beside(beside)
        manifest = {**bundle.manifest, "files": {name: list(found) for name, found in files.items()}}
        self.remote.write(f"{bundle.key}/{MANIFEST}", (json.dumps(manifest, indent=1) + "\n").encode())
        self.there[bundle.key] = json.loads(json.dumps(manifest))
        for name in before.keys() - files.keys():
            self.remote.remove(f"{bundle.key}/{name}")

    def fetch(self, key: str, folder: Path) -> Files:
        """Brings the files of a bundle. Raises Damaged where they are not those of its manifest."""
        found: Files = {}
        for name, (size, digest) in self.there[key]["files"].items():
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or ".." in parts:
                raise Damaged(f"its manifest names {name!r}, which is no file of it")
            try:
                found[name] = self.remote.download(f"{key}/{name}", folder / name)
            except NotThere:
                raise Damaged(f"{name} is missing") from None
            if found[name] != (size, digest):
                raise Damaged(f"{name} does not have the content that was written")
        return found

    def fetch_beside(self, folder: Path) -> None:
        """Brings the files of the run itself, each if it is there; evaluations are merged with those here."""
        for name in BESIDE:
            try:
                content = self.remote.read(name)
            except NotThere:
                continue
            if name == EVALUATION_FILE and (folder / name).exists():
                merge_evaluation(folder / name, content)  # what suites measured here is nowhere else
                continue
            with written_aside(folder / name) as aside:
                aside.write_bytes(content)

    def prune(self, stage: str, keep: int) -> None:
        """Removes all checkpoints of a stage but the `keep` newest and the best, also those that never became whole."""
        found = self.checkpoints(stage)
        best = best_of(found)
        stay = {c.folder.as_posix() for c in [*(found[-keep:] if keep else []), *([best] if best and keep else [])]}
        start = f"{CHECKPOINTS}/{stage}/"
        for key in sorted(key for key in self._begun - stay if key.startswith(start)):
            self.forget(key)
            self._begun.discard(key)

    def forget(self, key: str) -> None:
        """Removes a bundle, its manifest first."""
        self.remote.remove(f"{key}/{MANIFEST}")
        self.there.pop(key, None)
        self.remote.remove_below(key)

    def _send_file(self, path: Path, name: str) -> tuple[int, str]:
        signature = signature_of(path.parent, [path.name])
        known = self._sent.get(name)
        if known is None or known[0] != signature:
            self._sent[name] = known = signature, self.remote.upload(path, name)
        return known[1]

    def _send_beside(self, folder: Path) -> None:
        for name in BESIDE:
            path = folder / name
            if not path.exists():
                continue
            signature = signature_of(folder, [name])
            if name not in self._sent or self._sent[name][0] != signature:
                content = path.read_bytes()
                self.remote.write(name, content[: content.rfind(b"\n") + 1])  # a record may be on its way to the file
                self._sent[name] = signature, (0, "")


def _is_key(key: str) -> bool:
    parts = key.split("/")
    if len(parts) == 3 and parts[0] == CHECKPOINTS:
        return NAME.fullmatch(parts[2]) is not None
    return len(parts) == 1


def same_files(bundle: Bundle, manifest: Mapping[str, Any]) -> bool:
    """Whether what is there is a copy of a bundle, as far as names and sizes tell."""
    sizes = {name: size for name, size, *_ in bundle.signature if name != MANIFEST}
    told = ("settings", "done", "data", "score")
    return sizes == {name: found[0] for name, found in manifest["files"].items()} and all(
        bundle.manifest.get(key) == manifest.get(key) for key in told
    )
