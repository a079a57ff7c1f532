"""Selected log-probs, entropies and the chunked head: numbers, gradients, and what they keep in memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rayalign.objectives import logprobs as module
from rayalign.objectives.logprobs import chunked_logprobs, logprobs_and_entropy, selected_logprobs

from .worlds import deterministic, gradient, random_table


def random_labels(num_tokens: int, *, num_vocabulary: int, seed: int) -> Tensor:
    return torch.randint(num_vocabulary, (num_tokens,), generator=torch.Generator().manual_seed(seed))


def full_logprobs(logits: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    """The textbook form, which keeps a [T, V] log-softmax."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return (logits / temperature).log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)


def test_selected_logprobs_by_hand():
    """Two logits 0 and log 3: probabilities 1/4 and 3/4; at temperature 1/2 they are 1/10 and 9/10."""
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64).repeat(2, 1)
    labels = torch.tensor([0, 1])
    assert selected_logprobs(logits, labels).exp().tolist() == pytest.approx([0.25, 0.75])
    cold = selected_logprobs(logits, labels, temperature=0.5)
    assert cold.exp().tolist() == pytest.approx([0.1, 0.9])


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
def test_selected_logprobs_gradcheck(temperature):
    """Against finite differences; two tokens share a label, so that rows cannot be mixed up unseen."""
    logits, labels = random_table(4, 5, seed=1).requires_grad_(), torch.tensor([0, 3, 3, 4])
    forward = lambda x: selected_logprobs(x, labels, temperature=temperature)  # noqa: E731
    assert torch.autograd.gradcheck(forward, (logits,))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_selected_logprobs_equal_the_textbook_form_over_many_blocks(dtype, tolerance):
    """1,100 tokens span three row blocks; values and gradients as log_softmax + gather."""
    logits = (5 * random_table(1100, 7, seed=2)).to(dtype).requires_grad_()
    labels = random_labels(1100, num_vocabulary=7, seed=3)
    assert module._ROWS_PER_BLOCK < 1100 / 2
    coefficients = random_table(1100, seed=4).to(dtype)
    ours, expected = (f(logits, labels, temperature=0.8) for f in (selected_logprobs, full_logprobs))
    torch.testing.assert_close(ours, expected, atol=tolerance, rtol=tolerance)
    grads = [gradient((coefficients * x).sum(), logits) for x in (ours, expected)]
    torch.testing.assert_close(*grads, atol=tolerance, rtol=tolerance)


def test_half_precision_logits_give_float32_logprobs():
    """bfloat16 in: the result has the precision of the float32 computation, the gradient the dtype of the
    logits.
    """
    logits = (5 * random_table(64, 300, seed=5)).bfloat16().requires_grad_()
    labels = random_labels(64, num_vocabulary=300, seed=6)
    ours = selected_logprobs(logits, labels, temperature=0.7)
    assert ours.dtype == torch.float32
    exact = full_logprobs(logits.detach().double(), labels, temperature=0.7)
    torch.testing.assert_close(ours.double(), exact, atol=1e-5, rtol=1e-5)
    assert gradient(ours.sum(), logits).dtype == torch.bfloat16


def test_only_logits_labels_and_logsumexp_are_kept_for_backward():
    """No float32 tensor of [T, V] survives the forward pass of bfloat16 logits."""
    logits = random_table(20, 300, seed=7).bfloat16().requires_grad_()
    labels = random_labels(20, num_vocabulary=300, seed=8)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        selected_logprobs(logits, labels, temperature=0.7)
    assert sorted((t.dtype, tuple(t.shape)) for t in kept if t.dim() == 2) == [(torch.bfloat16, (20, 300))]
    assert kept[0].data_ptr() == logits.data_ptr()
    assert {tuple(t.shape) for t in kept[1:]} == {(20,)}


def test_masked_vocabulary_is_no_trouble():
    """Logits of -inf: probability 0, gradient 0, and an entropy that is a number."""
    logits = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    value = selected_logprobs(logits, torch.tensor([0]))
    assert value.item() == pytest.approx(-math.log(2))
    assert gradient(value.sum(), logits).tolist() == [[0.5, -0.5, 0.0]]
    assert logprobs_and_entropy(logits, torch.tensor([0]))[1].item() == pytest.approx(math.log(2))


def test_entropy_matches_the_definition_and_carries_no_gradient():
    """-sum p log p of the tempered softmax, over several blocks."""
    logits = random_table(1100, 6, seed=9).requires_grad_()
    log_p = (logits.detach() / 0.6).log_softmax(-1)
    labels = random_labels(1100, num_vocabulary=6, seed=10)
    logprobs, entropy = logprobs_and_entropy(logits, labels, temperature=0.6)
    torch.testing.assert_close(logprobs, log_p.gather(-1, labels[:, None])[:, 0], atol=1e-12, rtol=0)
    torch.testing.assert_close(entropy, -(log_p.exp() * log_p).sum(-1), atol=1e-12, rtol=0)
    assert logprobs.requires_grad and not entropy.requires_grad


class CountingHead(torch.nn.Module):
    """A linear head that counts its calls."""

    def __init__(self, *, num_hidden: int, num_vocabulary: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(random_table(num_vocabulary, num_hidden, seed=20))
        self.num_calls = 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.num_calls += 1
        return hidden @ self.weight.T


def head_gradients(num_tokens: int, *, chunk_tokens: int) -> tuple[list[Tensor], CountingHead]:
    """Log-probs, entropy, and the gradients of a weighted sum with respect to hidden states and head."""
    head = CountingHead(num_hidden=3, num_vocabulary=5)
    hidden = random_table(num_tokens, 3, seed=21).requires_grad_()
    labels = random_labels(num_tokens, num_vocabulary=5, seed=22)
    logprobs, entropy = chunked_logprobs(head, hidden, labels, temperature=0.8, chunk_tokens=chunk_tokens)
    loss = (random_table(num_tokens, seed=23) * logprobs).sum()
    return [logprobs, entropy, *torch.autograd.grad(loss, [hidden, head.weight])], head


@deterministic
@given(num_tokens=st.integers(0, 12), chunk_tokens=st.integers(1, 14))
def test_any_chunk_size_gives_the_same_numbers_and_gradients(num_tokens, chunk_tokens):
    """Including no tokens at all, where the head's gradient exists and is 0."""
    chunked, _ = head_gradients(num_tokens, chunk_tokens=chunk_tokens)
    whole, _ = head_gradients(num_tokens, chunk_tokens=1000)
    for ours, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-13, rtol=0)
    assert chunked[0].shape == chunked[1].shape == (num_tokens,)


def test_chunked_gradients_are_those_of_the_plain_form():
    """Not only equal among themselves: equal to head, log_softmax, gather."""
    (_, _, hidden_grad, weight_grad), head = head_gradients(10, chunk_tokens=4)
    hidden = random_table(10, 3, seed=21).requires_grad_()
    labels = random_labels(10, num_vocabulary=5, seed=22)
    loss = (random_table(10, seed=23) * full_logprobs(head(hidden), labels, temperature=0.8)).sum()
    expected = torch.autograd.grad(loss, [hidden, head.weight])
    torch.testing.assert_close((hidden_grad, weight_grad), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize(
    ("num_tokens", "chunk_tokens", "num_calls"), [(10, 10, 1), (10, 4, 6), (10, 1, 20), (0, 4, 1)]
)
def test_recomputation_is_paid_for_only_when_there_are_chunks(num_tokens, chunk_tokens, num_calls):
    """One chunk: one call of the head. n > 1 chunks: 2 n, forward and again in backward."""
    _, head = head_gradients(num_tokens, chunk_tokens=chunk_tokens)
    assert head.num_calls == num_calls


def test_scoring_without_gradient_never_recomputes():
    """Under no_grad the head runs once per chunk and nothing is recorded."""
    head = CountingHead(num_hidden=3, num_vocabulary=5)
    labels = random_labels(10, num_vocabulary=5, seed=22)
    with torch.no_grad():
        logprobs, entropy = chunked_logprobs(
            head, random_table(10, 3, seed=21), labels, temperature=1.0, chunk_tokens=4, with_entropy=False
        )
    assert head.num_calls == 3
    assert not logprobs.requires_grad
    assert entropy.shape == (0,)


def test_no_vocabulary_wide_tensor_lives_between_forward_and_backward():
    """With chunks, what autograd holds has no vocabulary axis at all; with one chunk it has."""

    def widest_kept(chunk_tokens: int) -> int:
        head = torch.nn.Linear(3, 1000, bias=False)
        hidden = torch.zeros(64, 3, requires_grad=True)
        labels = torch.zeros(64, dtype=torch.int64)
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            chunked_logprobs(head, hidden, labels, temperature=1.0, chunk_tokens=chunk_tokens)
        return max(kept, default=0)

    assert widest_kept(16) < 16 * 1000
    assert widest_kept(64) >= 64 * 1000


def test_bad_arguments_are_refused_in_words():
    logits, labels = torch.zeros(2, 3), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"logits \[T, V\] and labels \[T\], got \(2, 3\) and \(3,\)"):
        selected_logprobs(logits, labels)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        selected_logprobs(logits, labels[:2], temperature=0)
    with pytest.raises(ValueError, match="chunk_tokens must be at least 1"):
        chunked_logprobs(lambda h: h, logits, labels[:2], temperature=1.0, chunk_tokens=0)
