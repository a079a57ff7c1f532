"""Maximum likelihood on demonstrations: the objective of supervised fine-tuning.

Shapes: T tokens.
"""

from torch import Tensor

from rayalign.objectives.sums import weighted_sum


def negative_log_likelihood(policy_logprobs: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """-sum_t w_t log pi(y_t | x, y_<t): policy_logprobs[T], weights[T] -> scalar SUM.

    Source: paper 2 (AfD) eq. 2.1. Its gradient is that of KL(demonstrator || policy) over whole responses
    (T20), so the forward KL needs no other code. Weights are constants; the caller divides once, by tokens or
    by sequences.

    Example: policy_logprobs [-1., -3.], weights [1., 0.5] -> 2.5.
    """
    return -weighted_sum(policy_logprobs, weights)
