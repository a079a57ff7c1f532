"""Means, proportions and paired differences with their intervals: the same input gives the same output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from rayalign.evaluate.student import t_quantile

RESAMPLES = 10_000
_AT_ONCE = 4_000_000  # values drawn in one go, so that many prompts do not fill the memory


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and its confidence interval. From fewer values than an interval needs, the ends are NaN."""

    mean: float
    low: float
    high: float
    num: int

    def as_dict(self) -> dict[str, float | int | None]:
        """{"mean", "low", "high", "num"}, with null for NaN, as results.json holds it."""
        ends = {"mean": self.mean, "low": self.low, "high": self.high}
        return {name: value if math.isfinite(value) else None for name, value in ends.items()} | {
            "num": self.num
        }


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """a minus b over pairs, such as the same seeds or prompts, with an interval of the mean."""

    difference: Interval
    differences: tuple[float, ...]  # a - b of each pair, in the order given

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0 (not when it is unknown)."""
        return self.difference.low > 0 or self.difference.high < 0


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean with Student's t interval; the values must be independent (average a prompt's samples first).

    Example: `mean_interval([1, 2, 3])` is 2, from -0.484 to 4.484.
    """
    x = _checked(values, confidence)
    if x.size < 2:
        return Interval(float(x[0]) if x.size else math.nan, math.nan, math.nan, x.size)
    mean = float(x.mean())
    half = t_quantile((1 + confidence) / 2, x.size - 1) * float(x.std(ddof=1)) / math.sqrt(x.size)
    return Interval(mean, mean - half, mean + half, x.size)


def paired_difference(a: Sequence[float], b: Sequence[float], confidence: float = 0.95) -> PairedDifference:
    """a minus b, pair by pair: what two methods have in common in a seed cancels."""
    if len(a) != len(b):
        raise ValueError(f"pairs need two lists of one length, got {len(a)} and {len(b)} values")
    differences = _checked(a, confidence) - _checked(b, confidence)
    return PairedDifference(mean_interval(differences, confidence), tuple(differences.tolist()))


def bootstrap_interval(
    sums: ArrayLike,
    counts: ArrayLike | None = None,
    confidence: float = 0.95,
    *,
    num: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The mean over groups [N] with its percentile interval from `num` resamples of the groups.

    For values that are dependent within a group (the turns of a question, the instructions of a prompt): `sums` [N] are
    theirs and `counts` [N] how many each group has (1 if unset); the mean is that of all values, and groups without any
    are left out. `num` in the result counts the groups. From one group the ends are NaN; equal groups give an interval
    without width; the same input and seed give the same output. Raises ValueError for counts that are not as many.
    """
    totals = _checked(sums, confidence)
    weights = np.ones_like(totals) if counts is None else _checked(counts, confidence)
    if weights.shape != totals.shape or (weights < 0).any():
        raise ValueError(f"needs a count of at least 0 for each of {totals.size} groups")
    totals, weights = totals[weights > 0], weights[weights > 0]
    if totals.size == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    base = float(totals[0] / weights[0])  # equal groups then leave no rounding behind
    above = totals - base * weights
    mean = base + float(above.sum() / weights.sum())
    if totals.size < 2:
        return Interval(mean, math.nan, math.nan, totals.size)
    drawn = _resampled(above, weights, np.random.default_rng(seed), num)
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(mean, base + float(low), base + float(high), totals.size)


def paired_bootstrap(
    a: ArrayLike, b: ArrayLike, confidence: float = 0.95, *, num: int = RESAMPLES, seed: int = 0
) -> PairedDifference:
    """a minus b, pair by pair, with the bootstrap's interval: what two policies have in common on a prompt cancels."""
    x, y = _checked(a, confidence), _checked(b, confidence)
    if len(x) != len(y):
        raise ValueError(f"pairs need two lists of one length, got {len(x)} and {len(y)} values")
    differences = x - y
    interval = bootstrap_interval(differences, None, confidence, num=num, seed=seed)
    return PairedDifference(interval, tuple(differences.tolist()))


def _resampled(sums: np.ndarray, counts: np.ndarray, random: np.random.Generator, num: int) -> np.ndarray:
    """[num] means of all values, of N groups each that are drawn with replacement."""
    step = max(1, _AT_ONCE // len(sums))
    parts = []
    for start in range(0, num, step):
        rows = random.integers(len(sums), size=(min(step, num - start), len(sums)))
        parts.append(sums[rows].sum(axis=1) / counts[rows].sum(axis=1))
    return np.concatenate(parts)


def proportion_interval(successes: int, num: int, confidence: float = 0.95) -> Interval:
    """The share of successes with Wilson's interval, which stays within [0, 1] and holds for few trials."""
    _checked([], confidence)
    if not 0 <= successes <= num:
        raise ValueError(f"needs 0 <= successes <= num, got {successes} of {num}")
    if num == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    share, z = successes / num, NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * num)) / (1 + z * z / num)
    half = z / (1 + z * z / num) * math.sqrt(share * (1 - share) / num + z * z / (4 * num * num))
    low = 0.0 if successes == 0 else centre - half  # exact at the ends, where rounding would leave a trace
    high = 1.0 if successes == num else centre + half
    return Interval(share, low, high, num)


def accuracy_interval(margins: ArrayLike, confidence: float = 0.95) -> Interval:
    """The share of margins [N] above 0, a tie counting half, with Wilson's interval on the rounded number."""
    values = np.asarray(margins, dtype=np.float64)
    return proportion_interval(round(float((np.sign(values) + 1).sum() / 2)), len(values), confidence)


def _checked(values: ArrayLike, confidence: float) -> np.ndarray:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is a share such as 0.95, got {confidence}")
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1:
        raise ValueError(f"needs a list of values, got an array of shape {x.shape}")
    return x
