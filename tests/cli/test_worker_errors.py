"""What goes wrong in a worker comes out as what it is: the user's errors with exit code 2, others with their phase."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError, RayTaskError

from rayalign.actors.deadline import failure
from rayalign.errors import CallFailed, DataError, UserError, WorkerLost, is_disk_full, one_line_errors
from rayalign.stages.context import RunContext


def of_a_task(cause: Exception) -> RayTaskError:
    """As ray.get raises it."""
    return RayTaskError("apply", "traceback", cause)


def test_the_users_errors_stay_what_they_are() -> None:
    """Whether an actor raised them, or a worker of Ray Train, which hands them over bare."""
    for error in (of_a_task(DataError("demos.jsonl:3: no")), DataError("demos.jsonl:3: no")):
        found = failure(error, "sft")
        assert type(found) is DataError and str(found) == "demos.jsonl:3: no"


def test_other_errors_name_the_phase() -> None:
    assert str(failure(of_a_task(KeyError("x")), "reward-0: score")) == "reward-0: score: KeyError: 'x'"
    assert str(failure(ValueError("bad\nmore"), "sft")) == "sft: ValueError: bad"
    died = failure(RayActorError(), "policy-1: save")
    assert type(died) is WorkerLost and str(died).startswith("policy-1: save: the worker died")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_the_users(error: Exception) -> None:
    assert is_disk_full(error)
    found = failure(of_a_task(error), "policy-0: save")
    assert type(found) is UserError and "policy-0: save: the disk is full" in str(found)


def of_a_gpu() -> None:
    """What torch raises for CUDA."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_the_system() -> None:
    """What a fork or a map of a file fails with."""
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize(
    "allocate", [lambda: torch.empty(2**45), lambda: np.empty(2**45), lambda: [0] * 2**50, of_a_gpu, of_the_system]
)
def test_memory_that_is_not_there_is_the_users(
    allocate: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """In a worker, and in the command's own process."""
    with pytest.raises((RuntimeError, MemoryError, OSError)) as caught:
        allocate()
    found = failure(of_a_task(caught.value), "policy-0: update")
    assert type(found) is UserError and str(found).startswith("policy-0: update: out of memory (")
    assert "lower learner.micro_batch_tokens" in str(found)
    with pytest.raises(SystemExit) as ended, one_line_errors():
        allocate()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rayalign: out of memory (")


def test_what_memory_has_no_part_in_stays_a_traceback() -> None:
    assert type(failure(of_a_task(RuntimeError("shapes do not fit")), "score")) is CallFailed
    with pytest.raises(RuntimeError, match="shapes"), one_line_errors():
        raise RuntimeError("shapes do not fit")


def test_relative_paths_reach_workers_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray Train's workers have another working directory; names of the hub stay names."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "base").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    context = RunContext(*cast(list[Any], [None, tmp_path, None, None, None, None]))
    assert context.locate("models/base") == str(tmp_path / "models" / "base")
    assert context.locate("~/models/base") == str(tmp_path / "models" / "base")
    assert context.locate("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"
