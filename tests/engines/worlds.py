"""Runs one function in a world of several real processes over gloo, and brings back what each returned."""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from tests.conftest import HUNG_S


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def in_world(function: Callable[..., Any], *arguments: Any, num_ranks: int, deadline_s: float = HUNG_S) -> list[Any]:
    """`function(*arguments)` on every rank, each a fresh process with one thread; results in rank order."""
    with tempfile.TemporaryDirectory() as folder:
        context = torch.multiprocessing.spawn(
            _rank, args=(function, arguments, num_ranks, free_port(), folder), nprocs=num_ranks, join=False
        )
        end = time.monotonic() + deadline_s
        while not context.join(timeout=1):
            if time.monotonic() > end:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__} on {num_ranks} ranks took longer than {deadline_s} s")
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(num_ranks)]


def _rank(
    rank: int, function: Callable[..., Any], arguments: tuple[Any, ...], num_ranks: int, port: int, folder: str
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
