"""SIGTERM (a scheduler's pre-emption): the stage in progress saves itself and ends; a later one ends at once."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
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
    nothing is done. An alarm that the caller has set is still his: it waits while the grace is counted, and no longer.
    """
    stop_file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    asked_at = float("-inf")
    alarm = contextlib.ExitStack()

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked_at
        if not stop_file.exists():
            asked_at = time.monotonic()
            stop_file.touch()
            alarm.enter_context(_alarm(grace_s, out_of_time))
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

    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield
    except Exception as error:
        if _given_up and not isinstance(error, Stopped):  # C code that it was raised in makes a SystemError of it
            raise Stopped(_given_up[0]) from error
        raise
    finally:
        try:
            alarm.close()
        finally:
            signal.signal(signal.SIGTERM, before)
            _given_up.clear()
            stop_file.unlink(missing_ok=True)


@contextlib.contextmanager
def _alarm(after_s: float, ring: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`ring` is called in `after_s` s unless the block ends before; an earlier alarm then has what is left of its time."""
    begun = time.monotonic()
    left_s, again_s = signal.setitimer(signal.ITIMER_REAL, 0)
    handler = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, after_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(left_s - (time.monotonic() - begun), 0.001), again_s)
