"""Log-probs of chosen tokens and entropies, without ever keeping a [T, V] float32 tensor.

Shapes: T tokens, V vocabulary, H hidden width. Results are float32 for any 16- or 32-bit input and float64
for float64 input. Temperature divides the logits, so what is learned is the distribution that was sampled
from.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

_ROWS_PER_BLOCK = 512  # rows held in float32 at a time: 0.3 GB at V = 150k, however long the batch


def selected_logprobs(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) at the labels: logits[T, V], labels[T] -> logprobs[T].

    Same numbers and gradient as `log_softmax(logits.float() / temperature).gather(labels)`, but what lives
    until backward is the logits in their own dtype, the labels and one logsumexp per token. First derivatives
    only.

    Example: logits [[0., 0.]], labels [1] -> [-0.6931].
    """
    _check_shapes(logits, labels)
    _check_temperature(temperature)
    logprobs, _ = _SelectedLogprobs.apply(logits, labels, temperature, False)
    return logprobs


def logprobs_and_entropy(logits: Tensor, labels: Tensor, *, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """As `selected_logprobs`, and the entropy in nats of softmax(logits / temperature): two [T] tensors.

    The entropy is a metric: it carries no gradient. Logits of -inf (masked vocabulary) count as probability 0.
    """
    _check_shapes(logits, labels)
    _check_temperature(temperature)
    logprobs, entropy = _SelectedLogprobs.apply(logits, labels, temperature, True)
    return logprobs, entropy


def chunked_logprobs(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    chunk_tokens: int,
    min_chunks: int = 1,
    with_entropy: bool = True,
) -> tuple[Tensor, Tensor]:
    """The LM head on at most chunk_tokens tokens at a time: hidden[T, H], labels[T] -> (logprobs[T], entropy[T]).

    With more than one chunk each chunk's logits are recomputed in backward, so no [T, V] tensor lives until
    then; one chunk, or no gradient wanted, costs no recomputation. The head runs once even for T = 0, so that
    a rank without tokens still has a graph. Without entropy the second result is empty ([0]).

    Under ZeRO-3 every call of a sharded head is a collective, and all ranks must make as many: `min_chunks` is
    the number that the longest of them needs.
    """
    _check_temperature(temperature)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens must be at least 1, got {chunk_tokens}")
    num_chunks = max(-(-len(labels) // chunk_tokens), min_chunks)
    chunks = list(zip(hidden.tensor_split(num_chunks), labels.tensor_split(num_chunks), strict=True))

    def forward(hidden_chunk: Tensor, labels_chunk: Tensor) -> tuple[Tensor, Tensor]:
        parts: tuple[Tensor, Tensor] = _SelectedLogprobs.apply(
            head(hidden_chunk), labels_chunk, temperature, with_entropy
        )
        return parts

    if len(chunks) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(forward, *chunk, use_reentrant=False) for chunk in chunks]
    else:
        parts = [forward(*chunk) for chunk in chunks]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


class _SelectedLogprobs(torch.autograd.Function):
    """d logprob / d logits = (one_hot(label) - softmax(logits / temperature)) / temperature.

    The softmax is rebuilt in backward from the saved logits and their logsumexp, a block of rows at a time. The
    entropy, log Z - E[logit / temperature], comes from the exponentials that the logsumexp needs; empty if not wanted.
    """

    @staticmethod
    def forward(
        ctx, logits: Tensor, labels: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        num_rows = logits.shape[0]
        logsumexp = logits.new_empty(num_rows, dtype=_result_dtype(logits))
        entropy = logsumexp.new_empty(num_rows if with_entropy else 0)
        for rows in _row_blocks(num_rows):
            scaled = logits[rows].to(logsumexp.dtype) / temperature
            largest = scaled.amax(-1, keepdim=True)
            exponentials = (scaled - largest).exp_()
            total = exponentials.sum(-1)
            logsumexp[rows] = total.log() + largest.squeeze(-1)
            if with_entropy:
                finite = scaled.clamp_(min=torch.finfo(scaled.dtype).min)  # 0 * -inf is no number
                entropy[rows] = logsumexp[rows] - exponentials.mul_(finite).sum(-1) / total
        selected = logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).to(logsumexp.dtype)
        ctx.save_for_backward(logits, labels, logsumexp)
        ctx.temperature = temperature
        ctx.mark_non_differentiable(entropy)
        return selected / temperature - logsumexp, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        logits, labels, logsumexp = ctx.saved_tensors
        grad_logits = torch.empty_like(logits)
        scale = grad_logprobs / ctx.temperature
        for rows in _row_blocks(logits.shape[0]):
            block = (logits[rows].to(logsumexp.dtype) / ctx.temperature).sub_(logsumexp[rows, None]).exp_()
            block.mul_(-scale[rows, None]).scatter_add_(-1, labels[rows, None], scale[rows, None])
            grad_logits[rows] = block.to(logits.dtype)
        return grad_logits, None, None, None


def _row_blocks(num_rows: int) -> list[slice]:
    return [slice(start, start + _ROWS_PER_BLOCK) for start in range(0, num_rows, _ROWS_PER_BLOCK)]


def _result_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _check_shapes(logits: Tensor, labels: Tensor) -> None:
    if logits.shape[:-1] != labels.shape or labels.dim() != 1:
        raise ValueError(f"want logits [T, V] and labels [T], got {tuple(logits.shape)} and {tuple(labels.shape)}")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}: greedy decoding has no gradient")
