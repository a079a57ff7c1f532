"""Interrupts the writing of checkpoints, by SIGKILL at random moments and by a full disk, and loads what is there then."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from rayalign.storage.checkpoints import STATE, CheckpointStore
from rayalign.storage.snapshot import Snapshot

MEGABYTES = 8  # of a checkpoint
FULL_EVERY = 4  # each fourth interruption is a full disk, at a random size of file


def interrupt_writes(folder: Path, tries: int) -> None:
    """Prints at how many of `tries` interruptions a checkpoint could be loaded."""
    rng = random.Random(0)
    store = CheckpointStore(folder, keep=2)
    store.clear()
    write_one(store, 1)
    loadable = damaged = 0
    newest = 1
    for number in range(tries):
        full = number % FULL_EVERY == 0
        limit = rng.randrange(1, MEGABYTES * 2**19) if full else 0
        process = subprocess.Popen([sys.executable, __file__, str(folder), str(newest + 1), str(limit)])
        if not full:
            started = time.monotonic()
            while process.poll() is None and not (folder / ".writing").exists() and time.monotonic() - started < 60:
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.25))
            process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        (folder / ".writing").unlink(missing_ok=True)
        told: list[str] = []
        found = store.newest(told.append)
        damaged += len(told)
        if found is not None and found.step >= newest:
            loadable += 1
            newest = found.step
    print(
        f"{tries} interruptions, {tries // FULL_EVERY} of them full disks: at {loadable} the newest committed checkpoint "
        f"could be loaded; {damaged} damaged ones were met; {newest - 1} writes had ended before they were interrupted"
    )


def write_one(store: CheckpointStore, step: int) -> None:
    """A checkpoint of two files and a model's folder."""
    part = store.begin(step)
    (store.folder / ".writing").touch()
    half = MEGABYTES * 2**17  # float32 numbers in half of it
    snapshot = Snapshot(
        tensors={f"{STATE}/policy-{i}": {"weight": torch.full((half,), float(step))} for i in range(2)},
        values={f"{STATE}/policy": {"step": step}},
        models={"policy": lambda folder: (folder.mkdir(), (folder / "config.json").write_text("{}"))},
    )
    store.commit(part, {"step": step, "score": None}, snapshot.write(part))


def main(folder: str, first: str, limit: str) -> None:
    """Writes checkpoint after checkpoint until it is interrupted; at a full disk ends, as a run would."""
    if int(limit):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write past the limit then fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    step = int(first)
    while True:
        try:
            write_one(CheckpointStore(Path(folder), keep=2), step)
        except Exception as error:  # noqa: BLE001 - whatever a library makes of it
            sys.exit(0 if int(limit) and "File too large" in str(error) or "os error 27" in str(error) else repr(error))
        step += 1


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main(*sys.argv[1:])
