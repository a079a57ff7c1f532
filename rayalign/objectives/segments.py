"""Sums, means and repeats over ragged sequences: flat tokens plus lengths, never pad ids.

Shapes: B sequences, T = sum(lengths) tokens. Sequence b owns the next lengths[b] tokens of the flat axis. A
sequence of length zero is legal everywhere (an empty response): its sum is 0 and it repeats no value.
"""

import torch
from torch import Tensor


def segment_ids(lengths: Tensor, *, num_tokens: int) -> Tensor:
    """The sequence that each token belongs to: lengths[B] -> ids[T], int64.

    Example: lengths [2, 0, 1], num_tokens 3 -> [0, 0, 2].
    """
    check_cover(lengths, num_tokens=num_tokens)
    sequences = torch.arange(lengths.numel(), device=lengths.device)
    return torch.repeat_interleave(sequences, lengths, output_size=num_tokens)


def segment_sum(values: Tensor, lengths: Tensor) -> Tensor:
    """Sum of each sequence's tokens: values[T], lengths[B] -> [B] in the dtype of values, differentiable.

    With token log-probs this is log pi(y|x) = sum_t log pi(y_t|x, y_<t), EOS included. Adds up in float64:
    thousands of float32 tokens would lose digits, and on CUDA the order of additions would show.

    Example: values [1., 2., 5.], lengths [2, 0, 1] -> [3., 0., 5.].
    """
    ids = segment_ids(lengths.to(values.device), num_tokens=values.numel())
    sums = values.new_zeros(lengths.numel(), dtype=torch.float64).index_add(0, ids, values.double())
    return sums.to(values.dtype)


def segment_mean(values: Tensor, lengths: Tensor) -> Tensor:
    """Mean of each sequence's tokens: values[T], lengths[B] -> [B]; an empty sequence has mean 0.

    A metric or a length-normalised score, never the log-prob of a response (T17 asks for the sum there).
    """
    return segment_sum(values, lengths) / lengths.to(values.device).clamp(min=1)


def repeat_per_token(values: Tensor, lengths: Tensor) -> Tensor:
    """Gives every token its sequence's value: values[B], lengths[B] -> [T], differentiable.

    Example: values [7., 8., 9.], lengths [2, 0, 1] -> [7., 7., 9.].
    """
    if values.shape != lengths.shape:
        raise ValueError(f"values {tuple(values.shape)} and lengths {tuple(lengths.shape)} must both be [B]")
    return torch.repeat_interleave(values, lengths.to(values.device))


def check_cover(lengths: Tensor, *, num_tokens: int) -> None:
    """Raises ValueError unless lengths[B] cover exactly num_tokens tokens: a shifted batch must not train."""
    covered = int(lengths.sum())
    if covered != num_tokens:
        raise ValueError(f"lengths cover {covered} tokens but there are {num_tokens}: not of one batch")
