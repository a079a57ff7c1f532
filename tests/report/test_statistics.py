"""Intervals against known values, against scipy where it is there, and by how often they cover the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rayalign.evaluate.statistics import (
    Interval,
    accuracy_interval,
    bootstrap_interval,
    mean_interval,
    paired_difference,
    proportion_interval,
)
from rayalign.evaluate.student import t_cdf, t_quantile


@pytest.mark.parametrize(  # from printed tables
    ("probability", "degrees", "t"),
    [
        (0.975, 1, 12.706),
        (0.975, 3, 3.182),
        (0.975, 4, 2.776),
        (0.95, 9, 1.833),
        (0.995, 30, 2.750),
        (0.975, 1e6, 1.960),
    ],
)
def test_t_quantiles_of_the_tables(probability, degrees, t):
    assert t_quantile(probability, degrees) == pytest.approx(t, abs=6e-4)
    assert t_quantile(1 - probability, degrees) == pytest.approx(-t, abs=6e-4)


@pytest.mark.parametrize("degrees", [1, 2, 4, 19, 499, 20_000])
def test_t_quantiles_of_scipy(degrees):
    stats = pytest.importorskip("scipy.stats")
    for probability in (0.01, 0.4, 0.5, 0.9, 0.975, 0.9999):
        assert t_quantile(probability, degrees) == pytest.approx(
            stats.t.ppf(probability, degrees), rel=1e-8, abs=1e-10
        )
    for t in (-3.0, 0.0, 0.7, 40.0):
        assert t_cdf(t, degrees) == pytest.approx(stats.t.cdf(t, degrees), abs=1e-10)


def test_t_quantile_refuses_what_has_none():
    for probability, degrees in ((0.0, 3), (1.0, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="needs 0 < probability < 1"):
            t_quantile(probability, degrees)


def test_mean_interval_of_known_numbers():
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.num) == (2.0, 3)
    assert (found.low, found.high) == (pytest.approx(-0.4841, abs=1e-4), pytest.approx(4.4841, abs=1e-4))


def test_too_few_values_have_no_interval():
    one, none = mean_interval([0.5]), mean_interval([])
    assert one.as_dict() == {"mean": 0.5, "low": None, "high": None, "num": 1}
    assert none.as_dict() == {"mean": None, "low": None, "high": None, "num": 0}
    assert proportion_interval(0, 0).as_dict() == none.as_dict()


def test_paired_difference_of_planted_md():
    """Section 3, N = 200: gains .12 .13 .09 .15 .16 are .129 +- .032 there (from unrounded values)."""
    sft = [0.78, 0.77, 0.80, 0.76, 0.75]
    rft = [s + d for s, d in zip(sft, (0.12, 0.13, 0.09, 0.15, 0.16), strict=True)]
    found = paired_difference(rft, sft)
    assert found.differences == pytest.approx((0.12, 0.13, 0.09, 0.15, 0.16))
    assert found.difference.mean == pytest.approx(0.13)
    assert found.difference.high - found.difference.mean == pytest.approx(0.034, abs=1e-3)
    assert found.excludes_zero
    assert paired_difference(sft, rft).difference.mean == pytest.approx(-0.13)


def test_pairing_takes_out_what_the_pairs_share():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0, 10, 6)
    a, b = seeds + 1 + rng.normal(0, 0.1, 6), seeds + rng.normal(0, 0.1, 6)
    assert paired_difference(a, b).excludes_zero
    assert mean_interval(a).low < mean_interval(b).high


def test_one_pair_excludes_nothing():
    assert not paired_difference([1.0], [0.0]).excludes_zero


def test_wilson_of_known_numbers():
    found = proportion_interval(8, 10)  # Wilson (1927), as in textbooks
    assert (found.mean, found.low, found.high) == (
        0.8,
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert proportion_interval(0, 20).low == 0.0 and proportion_interval(0, 20).high == pytest.approx(
        0.1611, abs=1e-4
    )
    assert proportion_interval(20, 20).high == 1.0


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


@pytest.mark.parametrize("num", [3, 5, 40])
def test_t_intervals_cover_the_truth_19_times_in_20(num):
    rng = np.random.default_rng(num)
    share = np.mean([covers(mean_interval(rng.normal(0.4, 2.0, num)), 0.4) for _ in range(2000)])
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_wilson_covers_near_its_confidence(confidence):
    rng = np.random.default_rng(0)
    share = np.mean(
        [covers(proportion_interval(int(k), 60, confidence), 0.85) for k in rng.binomial(60, 0.85, 4000)]
    )
    assert abs(share - confidence) < 0.04


def test_bad_arguments_say_so():
    with pytest.raises(ValueError, match="confidence is a share"):
        mean_interval([1.0, 2.0], confidence=95)
    with pytest.raises(ValueError, match="one length, got 2 and 1"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="got 3 of 2"):
        proportion_interval(3, 2)
    with pytest.raises(ValueError, match="a list of values"):
        mean_interval([[1.0, 2.0]])


def test_an_accuracy_counts_ties_as_halves() -> None:
    assert accuracy_interval([3.0, 0.0, -1.0, 0.5]).as_dict() == proportion_interval(2, 4).as_dict()  # 2.5, rounded to even
    assert accuracy_interval([]).as_dict() == proportion_interval(0, 0).as_dict()


def test_bootstrap_is_of_groups() -> None:
    """Near the t interval for many groups; two equal values a group are no more evidence than one; empty groups are none."""
    values = np.random.default_rng(0).normal(5.0, 2.0, size=400)
    found, exact = bootstrap_interval(values), mean_interval(values)
    assert found.mean == pytest.approx(exact.mean) and found.num == 400
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=0.03)
    assert bootstrap_interval(2 * values, np.full(400, 2)) == found
    with_empty = bootstrap_interval(np.append(values, [0.0, 0.0]), np.append(np.ones(400), [0, 0]))
    assert with_empty == found
    uneven = bootstrap_interval([10.0, 3.0], [2, 1])
    assert uneven.mean == pytest.approx(13 / 3) and (uneven.low, uneven.high) == (3.0, 5.0)
    assert bootstrap_interval([7.0]).mean == 7.0 and math.isnan(bootstrap_interval([7.0]).low)
    assert bootstrap_interval([], []).num == 0 and math.isnan(bootstrap_interval([0.0], [0]).mean)
