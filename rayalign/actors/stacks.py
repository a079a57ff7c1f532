"""What a process was doing when a call passed its deadline: the stacks of all its threads, in the run's folder."""

from __future__ import annotations

import contextlib
import faulthandler
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BEFORE_FRAC = 0.95  # of a deadline: the worker writes before it is given up, and killed


@contextlib.contextmanager
def stacks_if_late(folder: str, name: str, deadline_s: float) -> Iterator[Callable[[float], None]]:
    """Writes this process's stacks to FOLDER/NAME.txt if the block has not ended shortly before its deadline.

    What it gives is called with a new deadline where the block has shown that it goes on. A thread of the C runtime
    writes, also where the interpreter is stuck. A process that is stopped writes nothing.
    """
    path = Path(folder) / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def begin(deadline_s: float) -> None:
            faulthandler.dump_traceback_later(BEFORE_FRAC * deadline_s, file=file)

        begin(deadline_s)
        try:
            yield begin
        finally:
            faulthandler.cancel_dump_traceback_later()
    if not path.stat().st_size:
        path.unlink(missing_ok=True)


def dump_stacks(folder: Path, name: str) -> None:
    """Adds this process's stacks to FOLDER/NAME.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.txt").open("a", encoding="utf-8") as file:
        file.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        faulthandler.dump_traceback(file=file)
