"""Metrics merge by the laws that make the order of merging, and the cut into parts, irrelevant."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayalign.telemetry.metrics import Last, Max, Mean, Min, Sum, merge, prefixed, values

whole = st.integers(-1000, 1000).map(float)  # sums of these are exact, so the laws hold without tolerance
extreme = st.floats(allow_nan=True)


def metrics_of(kind):
    if kind is Mean:
        return st.builds(Mean, whole, st.integers(0, 50).map(float))
    return st.builds(kind, whole if kind is Sum else extreme)


triples = st.sampled_from([Mean, Sum, Max, Min, Last]).flatmap(lambda k: st.tuples(*[metrics_of(k)] * 3))


def same(a, b) -> bool:
    return repr(a) == repr(b)  # NaN equals NaN here


@given(triples)
def test_merge_is_associative(abc):
    a, b, c = abc
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    assert same(left, right) or left.value() == right.value()  # -0.0 and 0.0


@given(triples)
def test_merge_is_commutative_apart_from_last(abc):
    a, b, _ = abc
    if isinstance(a, Last):
        assert same(a.merge(b), b)
        return
    one, other = a.merge(b), b.merge(a)
    assert same(one, other) or one.value() == other.value()


@given(st.lists(st.tuples(whole, st.integers(1, 9)), min_size=1), st.integers(1, 5))
def test_mean_does_not_depend_on_the_cut_into_parts(pairs, size):
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    per_part = [merge([{"x": Mean(v * w, w)} for v, w in part]) for part in parts]
    expected = sum(v * w for v, w in pairs) / sum(w for _, w in pairs)
    assert values(merge(per_part))["x"] == pytest.approx(expected)


def test_values_of_each_kind():
    parts = [
        {"loss": Mean(6.0, 3), "tokens": Sum(10), "top": Max(1), "lr": Last(0.1)},
        {"loss": Mean(2.0, 1), "tokens": Sum(5), "top": Max(4), "lr": Last(0.2)},
    ]
    assert values(merge(parts)) == {"loss": 2.0, "tokens": 15, "top": 4, "lr": 0.2}


def test_a_name_may_be_missing_from_some_parts_and_the_parts_stay_as_they_were():
    first = {"a": Sum(1)}
    assert values(merge([first, {"b": Sum(2)}, {"a": Sum(3)}])) == {"a": 4, "b": 2}
    assert first == {"a": Sum(1)}
    assert merge([]) == {}


def test_mixed_kinds_name_the_metric():
    with pytest.raises(TypeError, match=r"'policy/kl' is a Mean in one part, a Sum in another"):
        merge([{"policy/kl": Mean(1, 1)}, {"policy/kl": Sum(1)}])
    with pytest.raises(TypeError, match="a Max does not merge with a Sum"):
        Max(1).merge(Sum(1))


def test_a_nan_is_not_hidden_by_the_order():
    for kind in (Max, Min):
        assert math.isnan(kind(math.nan).merge(kind(1)).value()) and math.isnan(kind(1).merge(kind(math.nan)).value())
    assert math.isnan(Mean(0.0, 0).value())


def test_prefixed():
    assert prefixed({"kl": Sum(1)}, "policy") == {"policy/kl": Sum(1)}


def test_metrics_are_small_to_send():
    metrics = {"loss": Mean(1.0, 2), "top": Max(3.0)}
    assert pickle.loads(pickle.dumps(metrics)) == metrics
    assert len(pickle.dumps(Mean(1.0, 2))) < 120


@pytest.mark.parametrize("module", ["metrics", "clock", "tracker", "progress"])
def test_importing_is_light(module):
    code = f"import sys, rayalign.telemetry.{module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


HEAVY = ["torch", "ray", "numpy", "tensorboard", "wandb", "mlflow"]
