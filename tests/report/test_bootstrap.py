"""Bootstrap intervals: exact on small cases by enumeration, close to t on normal data, and as often right as they say."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from rayalign.evaluate.statistics import bootstrap_interval, mean_interval, paired_bootstrap, paired_difference


def test_it_is_the_interval_of_every_resample() -> None:
    """Of four values all 4^4 resamples can be listed: the quantiles of those means are the interval."""
    values = np.array([0.0, 1.0, 10.0, 100.0])
    every = np.array([np.mean(drawn) for drawn in itertools.product(values, repeat=4)])
    found = bootstrap_interval(values, num=200_000)
    assert found.mean == pytest.approx(27.75)
    for told, share in ((found.low, 0.025), (found.high, 0.975)):
        assert np.quantile(every, share - 0.005) <= told <= np.quantile(every, share + 0.005)


@pytest.mark.parametrize("num", [50, 400])
def test_on_normal_data_it_is_close_to_t(num: int) -> None:
    rng = np.random.default_rng(num)
    a, b = rng.normal(1.0, 2.0, num), rng.normal(0.8, 1.0, num)
    found, expected = paired_bootstrap(a, b), paired_difference(a, b)
    assert found.differences == expected.differences
    width = expected.difference.high - expected.difference.low
    assert found.difference.mean == pytest.approx(expected.difference.mean, abs=1e-12)
    assert found.difference.low == pytest.approx(expected.difference.low, abs=0.04 * width)
    assert found.difference.high == pytest.approx(expected.difference.high, abs=0.04 * width)


def test_it_covers_as_often_as_it_says() -> None:
    """Of skewed values too, such as rewards are."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap_interval(rng.exponential(1.0, 100), seed=k, num=500) for k in range(400)]
    assert 0.90 <= np.mean([one.low <= 1.0 <= one.high for one in intervals]) <= 0.98


def test_the_seed_alone_decides() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values.tolist(), seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval(values, seed=3).mean == bootstrap_interval(values, seed=4).mean


@pytest.mark.parametrize("value", [0.1, -1 / 3, 1e6 + 0.1, 0.0])
def test_equal_differences_have_no_width(value: float) -> None:
    b = np.arange(7) / 8  # exact, and so are the differences
    found = paired_bootstrap((b + 0.25).tolist(), b.tolist()).difference
    assert (found.mean, found.low, found.high) == (0.25, 0.25, 0.25)
    same = bootstrap_interval([value] * 7)
    assert (same.mean, same.low, same.high, same.num) == (value, value, value, 7)


def test_what_two_have_in_common_cancels() -> None:
    """Prompts differ far more than policies do: the paired interval is narrow, and agrees whichever comes first."""
    rng = np.random.default_rng(1)
    prompts = rng.normal(0, 10, 200)
    a, b = prompts + 0.5 + rng.normal(0, 0.5, 200), prompts + rng.normal(0, 0.5, 200)
    one, other = paired_bootstrap(a, b), paired_bootstrap(b, a)
    assert one.excludes_zero and one.difference.high - one.difference.low < 0.25
    assert bootstrap_interval(a).high - bootstrap_interval(a).low > 2
    assert other.difference.low == pytest.approx(-one.difference.high, abs=0.02)
    assert other.difference.mean == pytest.approx(-one.difference.mean, abs=1e-12)


def test_values_of_a_prompt_are_drawn_together() -> None:
    """Instructions of prompts that have several: the mean is that of all instructions."""
    right, counts = np.array([1, 0, 3, 2, 2]), np.array([1, 2, 3, 2, 3])
    found = bootstrap_interval(right, counts, num=2000)
    assert found.mean == pytest.approx(8 / 11) and 0 <= found.low < found.mean < found.high <= 1
    rare = bootstrap_interval([0, 1, 0, 0], [1, 1, 0, 0])  # a family that two of the prompts have
    assert rare.mean == 0.5 and (rare.low, rare.high, rare.num) == (0.0, 1.0, 2)
    every = bootstrap_interval([3, 2, 1], [3, 2, 1])
    assert (every.mean, every.low, every.high) == (1.0, 1.0, 1.0)


def test_many_prompts_are_drawn_in_parts() -> None:
    values = np.random.default_rng(0).normal(size=20_000)
    found, expected = bootstrap_interval(values, num=1000), mean_interval(values)
    assert found.high - found.low == pytest.approx(expected.high - expected.low, rel=0.1)


def test_few_values_and_bad_ones() -> None:
    one, none = bootstrap_interval([2.0]), bootstrap_interval([])
    assert one.mean == 2.0 and math.isnan(one.low) and one.as_dict()["high"] is None
    assert none.num == 0 and math.isnan(none.mean)
    for counts in ([1.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="needs a count"):
            bootstrap_interval([1.0, 2.0], counts)
    with pytest.raises(ValueError, match="two lists of one length"):
        paired_bootstrap([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_interval([1.0, 2.0], confidence=95)
