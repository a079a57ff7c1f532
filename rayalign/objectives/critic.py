"""What teaches a critic: the squared error of its values, held near those that the samples were judged by.

Shapes: T response tokens, flat and ragged. values[t] belongs to the state before token t.
"""

import torch
from torch import Tensor

from rayalign.objectives.sums import check_vectors, weighted_sum


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """sum_t w_t max((v - R)^2, (clip(v, old +- clip) - R)^2) / 2: three [T] -> (scalar sum, clipped count).

    Source: the PPO2 form in the released code of paper 1 (clip 0.2, times vf_coef 0.1) and in TRL's PPO; it is not
    in the PPO paper. Returns come from generalised_advantages. The count is of tokens of non-zero weight where the
    clipped error was strictly larger, that is, whose gradient is 0: the value has already moved `clip` towards the
    return. Mind the scale: `clip` is in units of the reward. An infinite `clip` is the plain squared error.

    Example: values [1.], old_values [0.], returns [2.], clip 0.2 -> (0.5 * 1.8^2 = 1.62, 1).
    """
    if not clip > 0:
        raise ValueError(f"clip must be above 0, got {clip}: an infinite one is the plain squared error")
    check_vectors(values, old_values, returns)
    returns, old_values = returns.detach(), old_values.detach()
    free = (values - returns).square()
    clipped = (old_values + (values - old_values).clamp(-clip, clip) - returns).square()
    is_clipped = clipped > free
    if weights is not None:
        is_clipped = is_clipped & (weights != 0)
    return weighted_sum(torch.maximum(free, clipped), weights) / 2, is_clipped.sum()
