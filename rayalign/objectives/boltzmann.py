"""Q of a language model, and the Boltzmann policy over it, without keeping more than the logits.

Shapes: T tokens, V vocabulary, H hidden width. Results are float32 for any 16- or 32-bit input and float64 for float64
input. Source: AVA (paper 4), section 4.2.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from rayalign.objectives.logprobs import selected_logprobs

_ROWS_PER_BLOCK = 512  # rows held in float32 at a time


class QTokens(NamedTuple):
    """What the chosen tokens are worth. All [T]."""

    q: Tensor  # Q(s, a)
    log_b: Tensor  # log B(a|s), B the softmax of beta Q over the vocabulary
    policy_logprobs: Tensor  # log pi(a|s) of the language model, a metric without gradient


def pretrained_q(logits: Tensor, labels: Tensor, *, alpha: float, beta: float) -> QTokens:
    """Q = log softmax(alpha pi), pi = softmax(logits), at the labels: logits[T, V], labels[T] -> three [T].

    Source: AVA section 4.2 ("ptq"): the softmax is over scaled PROBABILITIES. Departure from (4.3), which prints
    beta Q where (4.2) has log B = log softmax(beta Q): here it is log B in both. It equals log softmax(alpha beta pi), and
    beta Q only at beta = 1 (T31). Both lie above -log(e^(alpha beta) + V - 1), so this Q never tends to minus infinity;
    and the gradient to a logit carries the factor pi, so tokens that the model never expects are hardly learned.

    What lives until backward is the logits and three numbers a token. First derivatives only.

    Example: logits [[0., 0.]], labels [1], alpha 10, beta 1 -> q [-0.6931], log_b [-0.6931].
    """
    _check(logits, labels)
    return QTokens(*_PretrainedQ.apply(logits, labels, alpha, beta))


def head_q(values: Tensor, labels: Tensor, *, beta: float) -> QTokens:
    """Q from a head of its own: values[T, V], labels[T] -> three [T]; the policy is B itself.

    Source: AVA section 4.2 without "ptq"; CA (AVRIL). This Q has no bounds.
    """
    _check(values, labels)
    log_b = selected_logprobs(values, labels, temperature=1 / beta)
    chosen = values.gather(-1, labels.unsqueeze(-1)).squeeze(-1).to(log_b.dtype)
    return QTokens(chosen, log_b, log_b.detach())


def chunked_q(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    *,
    alpha: float | None,
    beta: float,
    chunk_tokens: int,
    min_chunks: int = 1,
) -> QTokens:
    """`head` on at most chunk_tokens tokens at a time: hidden[T, H], labels[T] -> three [T].

    `head` gives logits where alpha is set, Q itself where it is None. As in `logprobs.chunked_logprobs` a chunk's
    logits are made again in backward, and all ranks call the head as often (`min_chunks`).
    """
    num_chunks = max(-(-len(labels) // chunk_tokens), min_chunks)
    chunks = list(zip(hidden.tensor_split(num_chunks), labels.tensor_split(num_chunks), strict=True))

    def forward(hidden_chunk: Tensor, labels_chunk: Tensor) -> QTokens:
        rows = head(hidden_chunk)
        if alpha is None:
            return head_q(rows, labels_chunk, beta=beta)
        return pretrained_q(rows, labels_chunk, alpha=alpha, beta=beta)

    if len(chunks) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(forward, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [forward(*chunk) for chunk in chunks]
    return QTokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


class _PretrainedQ(torch.autograd.Function):
    """With p = softmax(z): d log softmax(c p)[a] / dz_v = p_v (g_v - sum_u p_u g_u), g = c (1_a - softmax(c p))."""

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, alpha: float, beta: float) -> tuple[Tensor, Tensor, Tensor]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        found = logits.new_empty(3, len(labels), dtype=dtype)  # q, log_b, policy_logprobs
        norms = torch.empty_like(found)  # the log-sum-exps of alpha p, alpha beta p and z
        for rows in _row_blocks(len(labels)):
            block = logits[rows].to(dtype)
            norms[2, rows] = block.logsumexp(-1)
            found[2, rows] = block.gather(-1, labels[rows, None]).squeeze(-1) - norms[2, rows]
            probs = (block - norms[2, rows, None]).exp_()
            for place, scale in ((0, alpha), (1, alpha * beta)):
                norms[place, rows] = (probs * scale).logsumexp(-1)
                found[place, rows] = scale * found[2, rows].exp() - norms[place, rows]
        ctx.save_for_backward(logits, labels, norms)
        ctx.scales = (alpha, alpha * beta)
        q, log_b, policy_logprobs = found.unbind()
        ctx.mark_non_differentiable(policy_logprobs)
        return q, log_b, policy_logprobs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_q: Tensor, grad_log_b: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, norms = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        for rows in _row_blocks(len(labels)):
            probs = (logits[rows].to(norms.dtype) - norms[2, rows, None]).exp_()
            slopes = torch.zeros_like(probs)  # of the loss by p
            for place, (scale, grad) in enumerate(zip(ctx.scales, (grad_q, grad_log_b), strict=True)):
                by_row = (scale * grad[rows])[:, None]
                slopes -= (probs * scale - norms[place, rows, None]).exp_() * by_row
                slopes.scatter_add_(-1, labels[rows, None], by_row)
            slopes -= (slopes * probs).sum(-1, keepdim=True)
            grad_logits[rows] = slopes.mul_(probs).to(logits.dtype)
        return grad_logits, None, None, None


def _row_blocks(num_rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_PER_BLOCK) for start in range(0, num_rows, _ROWS_PER_BLOCK)]


def _check(rows: Tensor, labels: Tensor) -> None:
    if rows.shape[:-1] != labels.shape or labels.dim() != 1:
        raise ValueError(f"want rows [T, V] and labels [T], got {tuple(rows.shape)} and {tuple(labels.shape)}")
