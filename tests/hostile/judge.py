"""One hostile input through the real code, and what came of it."""

from __future__ import annotations

import contextlib
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from rayalign.errors import UserError

BOUND_S = 20.0  # cases take milliseconds; a busy machine may take a thousand times as long

# What may come of a case. The first two are as it should be.
Outcome = Literal["accepted", "refused", "no place", "not refused", "traceback", "hang", "left behind"]


@dataclass(frozen=True)
class Case:
    """An input, and what is known of it.

    Attributes:
        kind: what was done to it, for the table.
        text: the input itself, for a person who reads a failure.
        run: the real code on it.
        place: what the message must name, each of them, if it is refused.
        pattern: what the message must look like from its start, if it is refused.
        must: "refuse" or "accept" where that is known.
        untouched: a path that a refusal must not make, or a folder in which it must change nothing.
    """

    kind: str
    text: str
    run: Callable[[], object]
    place: tuple[str, ...] = ()
    pattern: str = ""
    must: Literal["refuse", "accept"] | None = None
    untouched: Path | None = None


@dataclass(frozen=True)
class Verdict:
    """What came of a case, and the message or the traceback."""

    case: Case
    outcome: Outcome
    message: str = ""
    seconds: float = 0.0

    @property
    def is_fault(self) -> bool:
        """Whether rayalign is to be mended."""
        return self.outcome not in ("accepted", "refused")

    def __str__(self) -> str:
        return f"{self.outcome}: {self.case.kind}: {self.case.text[:1500]}\n  -> {self.message}"


def judge(case: Case) -> Verdict:
    """Runs a case within BOUND_S."""
    before = state(case.untouched)
    start = time.monotonic()
    message, outcome = _run(case)
    if outcome == "refused" and state(case.untouched) != before:
        outcome = "left behind"
    return Verdict(case, outcome, message, time.monotonic() - start)


def state(path: Path | None) -> dict[str, object]:
    """What is below a path: names, kinds and contents."""
    if path is None or not path.exists():
        return {}
    files = [path, *sorted(path.rglob("*"))]
    return {str(file): file.read_bytes() if file.is_file() else file.lstat().st_mode for file in files}


def has_place(message: str, case: Case) -> bool:
    """One printable line of bounded length in which every word of the place stands."""
    one_line = len(message.splitlines()) == 1 and message.isprintable() and len(message) < 2000
    return one_line and all(word in message for word in case.place) and re.match(case.pattern, message) is not None


def _run(case: Case) -> tuple[str, Outcome]:
    try:
        with bounded(BOUND_S):
            case.run()
    except UserError as error:
        message = str(error)
        if not has_place(message, case):
            return message, "no place"
        return message, "not refused" if case.must == "accept" else "refused"
    except _TooLong:
        return f"not done after {BOUND_S:g} s", "hang"
    except Exception:  # noqa: BLE001 - any other error is what these tests look for
        return traceback.format_exc(), "traceback"
    return "", "not refused" if case.must == "refuse" else "accepted"


class _TooLong(BaseException):
    """Not an Exception, so that no code under test takes it for an error of its input."""


@contextlib.contextmanager
def bounded(seconds: float) -> Iterator[None]:
    """Raises _TooLong in the block once it has taken so long; the timer of who runs the tests goes on afterwards."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again, where a callback of C code swallows it
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(left - (time.monotonic() - start), 0.01) if left else 0)
        signal.signal(signal.SIGALRM, handler)
