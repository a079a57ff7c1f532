"""How step.py talks to a contender: orders of so many steps on its standard input, one line of records back for each.

Nothing but the standard library: contenders live in environments of their own.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START_S = 600.0
ORDER_S = 600.0
# Freed memory is kept for the next tensor.
TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "1073741824",
}

Record = dict[str, float]


class Channel:
    """The contender's end. What libraries print goes to the log, never between the records."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)

    def ready(self, **facts: Any) -> None:
        """Says that steps can be ordered, with the versions and checks worth noting."""
        self._out.write(json.dumps(facts) + "\n")

    def next_order(self) -> int:
        """Waits for an order; 0 means stop."""
        line = sys.stdin.readline()
        return int(line) if line.strip() else 0

    def report(self, records: list[Record]) -> None:
        """The steps of one order."""
        self._out.write(json.dumps(records) + "\n")

    def serve(self, step: Any) -> None:
        """Answers orders with `step() -> Record` until told to stop."""
        while number := self.next_order():
            self.report([step() for _ in range(number)])


class ContenderFailed(Exception):
    """A contender ended, or did not answer in time; the message holds the end of its log."""


class Contender:
    """The benchmark's end: one process, one system, one setting. Idle between orders."""

    def __init__(self, name: str, command: list[str], *, threads: int, tuned: bool, log: Path) -> None:
        self.name = name
        self._log = log
        # What this shell has set for another interpreter, a cluster or its threads must not leak into it.
        foreign = {"PYTHONPATH", "VIRTUAL_ENV", "RAY_ADDRESS", *TUNED}
        environment = {k: v for k, v in os.environ.items() if k not in foreign} | (TUNED if tuned else {})
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
        started = time.perf_counter()
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        try:
            self.facts: dict[str, Any] = self._answer(START_S)
        except BaseException:
            self.stop(grace_s=0.0)
            raise
        self.start_s = time.perf_counter() - started

    def steps(self, number: int) -> list[Record]:
        """`number` steps, run now."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n".encode())
        self._process.stdin.flush()
        return self._answer(ORDER_S)

    def stop(self, grace_s: float = 30.0) -> None:
        """Ends the process; by force, with all its children, if it does not end by itself."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _answer(self, deadline_s: float) -> Any:
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(deadline_s) else b""
        if not line:
            end = "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])
            raise ContenderFailed(f"{self.name} gave no answer within {deadline_s:g} s or ended; its log ends:\n{end}")
        return json.loads(line)
