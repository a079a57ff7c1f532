"""Which results stay where they were made, and how they come back as arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayalign.types import Rollout, RolloutSummary, Scores, Stored


def keep(result: Any, put: Callable[[Any], Any]) -> Any:
    """Rollouts and scores become a `Stored` reference with a summary; everything else passes as it is."""
    if isinstance(result, Rollout):
        return Stored(put(result), RolloutSummary.of(result))
    if isinstance(result, Scores):
        return Stored(put(result), len(result.rows))
    return result


def resolve(argument: Any, get: Callable[[list[Any]], list[Any]]) -> Any:
    """A `Stored` value, or a list of them, becomes what it refers to."""
    if isinstance(argument, Stored):
        return get([argument.ref])[0]
    if isinstance(argument, list) and argument and all(isinstance(a, Stored) for a in argument):
        return get([a.ref for a in argument])
    return argument
