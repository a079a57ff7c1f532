"""Metrics that know how they reduce: micro-batches, ranks and steps merge without a side table of weights.

Every kind is a frozen value with `merge(other)` (associative, and apart from `Last` commutative) and
`value()`. They are a few floats each and travel between processes; nothing here imports numpy, torch or ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Mean:
    """A weighted mean, kept as its numerator and denominator: never a mean of means.

    Example: `Mean(6.0, 3).merge(Mean(2.0, 1)).value()` is 2.0.
    """

    total: float
    count: float = 1.0  # what `total` was summed over: tokens, sequences, pairs, seconds

    def merge(self, other: Mean) -> Mean:
        """The mean over both."""
        _require_same_kind(self, other)
        return Mean(self.total + other.total, self.count + other.count)

    def value(self) -> float:
        """The mean; NaN over nothing."""
        return self.total / self.count if self.count else math.nan


@dataclass(frozen=True, slots=True)
class Sum:
    """A count or an amount that adds up."""

    total: float

    def merge(self, other: Sum) -> Sum:
        """Both together."""
        _require_same_kind(self, other)
        return Sum(self.total + other.total)

    def value(self) -> float:
        """The sum."""
        return self.total


@dataclass(frozen=True, slots=True)
class Max:
    """The largest seen. A NaN stays a NaN whatever it meets, so that no merge order can hide it."""

    largest: float

    def merge(self, other: Max) -> Max:
        """The larger one."""
        _require_same_kind(self, other)
        return self if math.isnan(self.largest) or self.largest >= other.largest else other

    def value(self) -> float:
        """The maximum."""
        return self.largest


@dataclass(frozen=True, slots=True)
class Min:
    """The smallest seen; a NaN stays a NaN, as in Max."""

    smallest: float

    def merge(self, other: Min) -> Min:
        """The smaller one."""
        _require_same_kind(self, other)
        return self if math.isnan(self.smallest) or self.smallest <= other.smallest else other

    def value(self) -> float:
        """The minimum."""
        return self.smallest


@dataclass(frozen=True, slots=True)
class Last:
    """A state, such as a learning rate: the value merged last stands."""

    latest: float

    def merge(self, other: Last) -> Last:
        """The other, which came later."""
        _require_same_kind(self, other)
        return other

    def value(self) -> float:
        """The latest value."""
        return self.latest


Metric = Mean | Sum | Max | Min | Last
Metrics = dict[str, Metric]


def merge(parts: Iterable[Mapping[str, Metric]]) -> Metrics:
    """All parts as one; a name may be missing from some. A name with two kinds is a TypeError that names it.

    Example: `merge([{"loss": Mean(6.0, 3)}, {"loss": Mean(2.0, 1), "steps": Sum(1)}])`.
    """
    merged: Metrics = {}
    for part in parts:
        for name, metric in part.items():
            merged[name] = _merge_named(name, merged[name], metric) if name in merged else metric
    return merged


def values(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The plain numbers."""
    return {name: metric.value() for name, metric in metrics.items()}


def prefixed(metrics: Mapping[str, Metric], prefix: str) -> Metrics:
    """The same metrics under `PREFIX/NAME`."""
    return {f"{prefix}/{name}": metric for name, metric in metrics.items()}


def _merge_named(name: str, first: Any, second: Any) -> Metric:
    if type(first) is not type(second):
        raise TypeError(
            f"metric {name!r} is a {type(first).__name__} in one part, a {type(second).__name__} in another"
        )
    return first.merge(second)


def _require_same_kind(first: Metric, second: Metric) -> None:
    if type(first) is not type(second):
        raise TypeError(f"a {type(first).__name__} does not merge with a {type(second).__name__}")
