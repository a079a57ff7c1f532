"""SIGTERM (a scheduler's pre-emption): the stage in progress saves itself and ends; a second one ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rayalign.errors import Stopped

_given_up: list[str] = []  # why, from the moment that it is raised


def raise_if_given_up() -> None:
    """Raises Stopped once more where it was raised already: in the midst of Ray's code it comes out as an error of Ray's."""
    if _given_up:
        raise Stopped(_given_up[0])


@contextlib.contextmanager
def stop_on_sigterm(stop_file: Path, *, grace_s: float) -> Iterator[None]:
    """While the block runs, SIGTERM makes `stop_file`, which stages look for after each step.

    Where none has ended within `grace_s`, or at a second SIGTERM, Stopped is raised where the program is. Outside the
    main thread, where Python takes no signals, nothing is done.
    """
    stop_file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            give_up(signum, frame)
        stop_file.touch()
        signal.setitimer(signal.ITIMER_REAL, grace_s)

    def give_up(signum: int, frame: FrameType | None) -> None:
        _given_up[:] = [
            f"asked to stop, and {grace_s:g} s (checkpoints.grace_s) were too few for the step in progress to end and be "
            "written; a next start goes on from the last checkpoint"
        ]
        raise_if_given_up()

    before = {kind: signal.signal(kind, handler) for kind, handler in ((signal.SIGTERM, ask), (signal.SIGALRM, give_up))}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        _given_up.clear()
        stop_file.unlink(missing_ok=True)
