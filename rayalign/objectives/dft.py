"""Discriminative fine-tuning (DFT): demonstrations against a partition function estimated by importance sampling.

Shapes: B prompts, M negatives per prompt. All log-probs are SUMS over the tokens of a response, EOS included.
"""

import math

import torch
from torch import Tensor

from rayalign.objectives.sums import check_vectors


def dft_loss(
    demo_logprob_sums: Tensor,
    negative_logprob_sums: Tensor,
    negative_generator_logprob_sums: Tensor,
    *,
    tau: float,
    log_averages: Tensor | None,
    decay: float,
) -> tuple[Tensor, Tensor]:
    """sum_b -s(y+) + tau log u: demo[B], negatives[B, M], their generator's[B, M] -> (scalar sum, log u[B]).

    s = log pi. Source: DFT (Guo et al. 2025, 2502.18679) and its released code: the estimate of the partition
    function of exp(s / tau) is mean_j exp(s(y_j) / tau - log P-(y_j)) over negatives y_j of a fixed generator P-.
    Without averages, u is that estimate and the loss is a plain log-mean-exp, biased for few negatives. With them
    (one per prompt, log_averages[B]), u = (1 - decay) u_before + decay estimate and the gradient is tau
    grad(estimate) / u: the bias averages out over epochs. So `decay` is the weight of the NEW estimate (the paper's
    gamma, 0.85). Store the second result, which has no gradient, by prompt, and give it back next time; nan says
    that a prompt has none yet.

    It is maximum-likelihood IRL with reward s and beta = tau on a uniform reference, times tau. At tau = 1 the exact
    partition function is 1, because pi is normalised: what DFT adds to fine-tuning there comes from the estimate
    alone. Departures: a prompt's first estimate is its average (the code starts from a constant); decay does not
    follow a schedule; the value is the objective (the code's is only right in its gradient); DFT2, without P-, is
    this function on means over tokens with zeros for the generator.

    Example: demo [-1.], negatives [[-2.]], generator [[-2.]], tau 1, log_averages None -> (1., [0.]).
    """
    if not tau > 0:
        raise ValueError(f"tau must be above 0, got {tau}")
    if not 0 < decay <= 1:
        raise ValueError(f"decay is the weight of the new estimate, above 0 and at most 1, got {decay}")
    _check_table(demo_logprob_sums, negative_logprob_sums, negative_generator_logprob_sums)
    log_weights = negative_logprob_sums / tau - negative_generator_logprob_sums.detach()
    log_estimates = log_weights.logsumexp(-1) - math.log(log_weights.shape[-1])
    new = log_estimates.detach()
    if log_averages is not None:
        check_vectors(demo_logprob_sums, log_averages)
        before = log_averages.detach().to(new.dtype)
        if decay < 1:
            mixed = torch.logaddexp(math.log1p(-decay) + before, math.log(decay) + new)
            new = torch.where(before.isnan(), new, mixed)
    # Of value 0, and of gradient grad(estimate) / u.
    change = (log_estimates.detach() - new).exp() * (log_estimates - log_estimates.detach())
    return (tau * (new + change) - demo_logprob_sums).sum(), new


def _check_table(demos: Tensor, negatives: Tensor, generator: Tensor) -> None:
    """Raises ValueError unless they are [B], [B, M], [B, M] with M of at least 1."""
    want = (len(demos), negatives.shape[-1])
    if demos.dim() != 1 or negatives.shape != want or generator.shape != want or want[1] < 1:
        shapes = [tuple(x.shape) for x in (demos, negatives, generator)]
        raise ValueError(f"want demos [B] and two tables [B, M] with M of at least 1, got {shapes}")
