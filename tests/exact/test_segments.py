"""Ragged sums, means and repeats: round trips on any lengths, empty sequences included."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rayalign.objectives.segments import repeat_per_token, segment_ids, segment_mean, segment_sum

from .worlds import deterministic, gradient, random_table

any_lengths = st.lists(st.integers(0, 5), min_size=0, max_size=8).map(
    lambda lengths: torch.tensor(lengths, dtype=torch.int64)
)


@deterministic
@given(any_lengths)
def test_sum_equals_a_loop_over_slices(lengths):
    values = random_table(int(lengths.sum()), seed=1)
    expected = [part.sum().item() for part in values.split(lengths.tolist())]
    assert segment_sum(values, lengths).tolist() == pytest.approx(expected, abs=1e-14)


@deterministic
@given(any_lengths)
def test_repeat_then_mean_is_the_identity_where_there_are_tokens(lengths):
    values = random_table(len(lengths), seed=2)
    back = segment_mean(repeat_per_token(values, lengths), lengths)
    torch.testing.assert_close(back, torch.where(lengths > 0, values, 0.0))


@deterministic
@given(any_lengths)
def test_sum_and_repeat_are_adjoint(lengths):
    """<sum(v), w> == <v, repeat(w)>: each is the other's gradient, which is what makes them agree on who owns
    a token.
    """
    values = random_table(int(lengths.sum()), seed=3).requires_grad_()
    weights = random_table(len(lengths), seed=4).requires_grad_()
    inner = (segment_sum(values, lengths) * weights).sum()
    repeated = repeat_per_token(weights, lengths)
    torch.testing.assert_close(inner, (values * repeated).sum())
    torch.testing.assert_close(
        gradient((values * repeated).sum(), weights), segment_sum(values, lengths).detach()
    )
    assert torch.equal(gradient(inner, values), repeated.detach())


def test_golden_values():
    lengths = torch.tensor([2, 0, 1])
    values = torch.tensor([1.0, 2.0, 5.0])
    assert segment_sum(values, lengths).tolist() == [3.0, 0.0, 5.0]
    assert segment_mean(values, lengths).tolist() == [1.5, 0.0, 5.0]
    assert repeat_per_token(torch.tensor([7.0, 8.0, 9.0]), lengths).tolist() == [7.0, 7.0, 9.0]
    assert segment_ids(lengths, num_tokens=3).tolist() == [0, 0, 2]


def test_long_float32_sums_keep_their_digits():
    """100,000 tokens of 0.1: a float32 running sum is off by more than 1, the result here by no more than
    float32 allows.
    """
    values = torch.full((100_000,), 0.1)
    lengths = torch.tensor([100_000])
    result = segment_sum(values, lengths)
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx(100_000 * values[0].double().item(), rel=1e-7)
    assert abs(values.cumsum(0)[-1].item() - result.item()) < 10  # the same quantity


@pytest.mark.parametrize("lengths", [[2, 2], [1, 1], []])
def test_lengths_of_another_batch_are_refused(lengths):
    with pytest.raises(ValueError, match="tokens but there are 3: not of one batch"):
        segment_sum(torch.zeros(3), torch.tensor(lengths, dtype=torch.int64))
