"""SIGTERM (a scheduler's pre-emption): the stage in progress saves itself and ends; a later one ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rayalign.errors import GOES_ON, Stopped

SAME_S = 2.0  # within which a further SIGTERM is the same: `timeout`, make and schedulers send it to a process and its group
_given_up: list[str] = []  # why, from the moment that it is raised


def raise_if_given_up() -> None:
    """Raises Stopped once more where it was raised already: in the midst of Ray's code it comes out as an error of Ray's."""
    if _given_up:
        raise Stopped(_given_up[0])


@contextlib.contextmanager
def stop_on_sigterm(stop_file: Path, *, grace_s: float) -> Iterator[None]:
    """While the block runs, SIGTERM makes `stop_file`, which stages look for after each step.

    Where none has ended within `grace_s`, or at a further SIGTERM after `SAME_S`, Stopped is raised where the program is,
    and whatever then comes out of the block leaves it as Stopped. Outside the main thread, where Python takes no signals,
    nothing is done.
    """
    stop_file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_at = float("-inf")

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if not stop_file.exists():
            asked_at = time.monotonic()
            stop_file.touch()
            signal.setitimer(signal.ITIMER_REAL, grace_s)
        elif time.monotonic() - asked_at > SAME_S:
            give_up_for("asked twice to stop, the second time before the step in progress had ended")

    def out_of_time(signum: int, frame: FrameType | None) -> None:
        give_up_for(
            f"asked to stop, and {grace_s:g} s (checkpoints.grace_s) were too few for the step in progress to end and be "
            "written"
        )

    def give_up_for(reason: str) -> None:
        _given_up[:] = [f"{reason}; {GOES_ON}"]
        raise_if_given_up()

    before = {kind: signal.signal(kind, handler) for kind, handler in ((signal.SIGTERM, ask), (signal.SIGALRM, out_of_time))}
    try:
        yield
    except Exception as error:
        if _given_up and not isinstance(error, Stopped):  # C code that it was raised in makes a SystemError of it
            raise Stopped(_given_up[0]) from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        _given_up.clear()
        stop_file.unlink(missing_ok=True)
