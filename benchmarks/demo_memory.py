"""Wall time and peak memory of the whole demo: every process it starts, shared pages counted once.

    python benchmarks/demo_memory.py [name=demo-memory KEY=VALUE ...]

Memory is the sum of proportional set sizes (PSS) over the process tree, sampled every half second.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

EVERY_S = 0.5


def main() -> None:
    """Runs `rayalign demo` and prints what it took."""
    started = time.monotonic()
    command = [sys.executable, "-m", "rayalign.cli", "demo", *(sys.argv[1:] or ["name=demo-memory"])]
    process = psutil.Process(subprocess.Popen(command).pid)
    peak, at_s, processes = 0, 0.0, 0
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        sizes = [size for size in map(proportional_size, [process, *process.children(recursive=True)]) if size]
        if sum(sizes) > peak:
            peak, at_s, processes = sum(sizes), time.monotonic() - started, len(sizes)
        time.sleep(EVERY_S)
    print(f"wall time {time.monotonic() - started:.0f} s")
    print(f"peak memory {peak / 2**30:.2f} GiB, at {at_s:.0f} s, in {processes} processes")


def proportional_size(process: psutil.Process) -> int:
    """Bytes of a process, its share of shared pages only; 0 if it has just ended."""
    try:
        return process.memory_full_info().pss
    except (psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):
        return 0


if __name__ == "__main__":
    main()
