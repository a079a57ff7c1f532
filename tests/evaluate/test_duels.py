"""Win rates sum to one whichever policy comes first; n-grams are counted as by hand."""

from __future__ import annotations

import numpy as np
import pytest

from rayalign.evaluate.diversity import distinct_ngrams, repeated_ngrams_frac
from rayalign.evaluate.duels import win_rates


def test_both_orders_agree() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 4, (40, 3)).astype(float), rng.integers(0, 4, (40, 5)).astype(float)
    found = win_rates(a, b)
    assert found + win_rates(b, a) == pytest.approx(np.ones(40), abs=1e-15)
    for prompt in range(40):
        met = [1.0 if x > y else 0.5 if x == y else 0.0 for x in a[prompt] for y in b[prompt]]
        assert found[prompt] == pytest.approx(np.mean(met), abs=1e-15)
    assert (win_rates(a, a) == 0.5).all()
    assert win_rates(np.ones((2, 1)), np.zeros((2, 1))).tolist() == [1.0, 1.0]
    with pytest.raises(ValueError, match="as many prompts"):
        win_rates(a, b[1:])


def test_ngrams_by_hand() -> None:
    assert distinct_ngrams(["a b a b", "a b"], 1) == (2, 6)
    assert distinct_ngrams(["a b a b", "a b"], 2) == (2, 4)
    assert distinct_ngrams(["a b", "c d"], 2) == (2, 2)  # none runs over the end of a text
    assert distinct_ngrams(["a b", "", "c"], 3) == (0, 0)
    assert distinct_ngrams(["a  b\n", "a b"], 2) == (1, 2)
    assert repeated_ngrams_frac("a b a b a", 2) == 0.5 and repeated_ngrams_frac("a b a b a") == 0.0
    assert repeated_ngrams_frac("no no no no no no no") == 0.75 and repeated_ngrams_frac("no") == 0.0
    with pytest.raises(ValueError, match="at least one word"):
        distinct_ngrams(["a"], 0)
