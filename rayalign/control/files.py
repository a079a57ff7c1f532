"""What the npz files of control have in common: how they are read, and the checks that hold for both kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rayalign.control.environments import Task
from rayalign.errors import DataError
from rayalign.storage.aside import written_aside

Arrays = Mapping[str, np.ndarray]

SLACK = 1e-4  # of a bound: float32 rounding of what was clipped to it
SCALES = ("environment", "unit")


def read_arrays(path: Path, required: Sequence[str]) -> dict[str, np.ndarray]:
    """All arrays of an npz file. Raises DataError for what is none, lacks one of `required`, or holds objects."""
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, without a name")
        with file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; rayalign control expert CONFIG makes both kinds") from None
    except Exception as error:  # noqa: BLE001 - numpy, zipfile, zlib and tokenize each have their own for a damaged file
        told = "it is no zip file" if "contains pickled" in str(error) else " ".join(str(error).split())[:120]
        raise DataError(f"{path}: not an npz file of plain arrays ({told}); docs/control.md has the layout") from None
    missing = [name for name in required if name not in arrays]
    if missing:
        there = ", ".join(sorted(arrays)) or "nothing"
        raise DataError(f"{path}: has no array {missing[0]!r} (it has {there}); docs/control.md has the layout")
    return arrays


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Writes an npz file, whole or not at all."""
    with written_aside(path) as aside, aside.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def check_environment(path: Path, arrays: Arrays, task: Task) -> None:
    """Raises DataError for a file that says that it is of another environment; one that says nothing passes."""
    if "environment" in arrays and str(arrays["environment"]) != task.environment:
        raise DataError(
            f"{path}: made in {arrays['environment']}, and environment.id is {task.environment}; use its own data"
        )


def checked_numbers(path: Path, name: str, array: np.ndarray, shape: tuple[int | None, ...]) -> np.ndarray:
    """The array as float32.

    Raises DataError for another shape (None takes any length), and for a number that is not finite, or not in float32.
    """
    fits = array.ndim == len(shape) and all(
        want is None or want == found for want, found in zip(shape, array.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise DataError(f"{path}: {name} has shape {array.shape}, expected ({wanted}); is it of this environment?")
    if array.dtype.kind not in "fiu":
        raise DataError(f"{path}: {name} holds {array.dtype}, expected numbers")
    with np.errstate(over="ignore"):
        numbers = np.asarray(array, dtype=np.float32)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        place = ", ".join(str(index) for index in bad[0])
        raise DataError(
            f"{path}: {name}[{place}] is {array[tuple(bad[0])]} ({len(bad)} such numbers); remove those rows"
        )
    return numbers


def unit_actions(
    path: Path, arrays: Arrays, names: Sequence[str], task: Task, shape: tuple[int | None, ...]
) -> list[np.ndarray]:
    """The action arrays[*shape, A] as `Task` has them, from the scale that the file is in: `action_scale`, or the
    environment's. Choices are whole numbers[*shape].

    Raises DataError for actions outside the bounds, and for those that look like [-1, 1] where the bounds are wider.
    """
    if task.is_choice:
        return [_choices(path, name, arrays[name], task, shape) for name in names]
    scale = str(arrays.get("action_scale", "environment"))
    if scale not in SCALES:
        raise DataError(f"{path}: action_scale is {scale!r}; it is one of {', '.join(SCALES)}")
    found = [checked_numbers(path, name, arrays[name], (*shape, task.action_size)) for name in names]
    low, high = (task.low, task.high) if scale == "environment" else (-np.ones_like(task.low), np.ones_like(task.high))
    for name, actions in zip(names, found, strict=True):
        _check_bounds(path, name, actions, low, high, scale, task)
    if scale == "environment":
        if "action_scale" not in arrays:
            _check_scale(path, found, task)
        found = [task.to_unit(actions) for actions in found]
    return [np.clip(actions, -1.0, 1.0) for actions in found]


def _choices(path: Path, name: str, array: np.ndarray, task: Task, shape: tuple[int | None, ...]) -> np.ndarray:
    if array.dtype.kind not in "iu":
        raise DataError(
            f"{path}: {name} holds {array.dtype}, and an action of {task.environment} is a whole number from 0 to "
            f"{task.action_size - 1}"
        )
    checked_numbers(path, name, array, shape)
    outside = np.argwhere((array < 0) | (array >= task.action_size))
    if len(outside):
        place = tuple(outside[0])
        raise DataError(
            f"{path}: {name}[{', '.join(str(index) for index in place)}] is {array[place]}, and an action of "
            f"{task.environment} is a whole number from 0 to {task.action_size - 1} ({len(outside)} such numbers)"
        )
    return task.to_unit(array)


def _check_bounds(
    path: Path, name: str, actions: np.ndarray, low: np.ndarray, high: np.ndarray, scale: str, task: Task
) -> None:
    slack = SLACK * (high - low)
    outside = np.argwhere((actions < low - slack) | (actions > high + slack))
    if not len(outside):
        return
    place, column = tuple(outside[0]), outside[0][-1]
    bounds = f"[{low[column]:g}, {high[column]:g}]"
    hint = "clip them when recording"
    if scale == "unit":
        hint = f"action_scale says unit; for actions of {task.environment} itself it is environment"
    elif np.abs(actions).max() <= 1.0 + SLACK:
        hint = "for actions in [-1, 1] set action_scale to unit in the file"
    raise DataError(
        f"{path}: {name}[{', '.join(str(index) for index in place)}] is {actions[place]:g}, outside {bounds} of "
        f"{task.environment} ({len(outside)} such numbers); {hint}"
    )


def _check_scale(path: Path, found: Sequence[np.ndarray], task: Task) -> None:
    """Policies press against their bounds: a largest action of just 1 where 2 are allowed was recorded before scaling."""
    widest = float(np.maximum(np.abs(task.low), np.abs(task.high)).min())
    largest = max((float(np.abs(actions).max()) for actions in found if actions.size), default=0.0)
    if widest > 1.0 + SLACK and 1.0 - SLACK <= largest <= 1.0 + SLACK:
        raise DataError(
            f"{path}: actions look as if scaled to [-1, 1] (the largest is {largest:.4g}), and those of {task.environment} "
            f"reach {widest:g}; set action_scale in the file to unit, or to environment and rescale them"
        )
