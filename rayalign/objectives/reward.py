"""Losses that teach an explicit reward: pairwise, linear and logistic on demonstrations, and preferences.

Shapes: B sequences, N pairs. A pair is one demonstration and one sample of the agent for the same prompt,
each scored with one number. Every loss is a SUM over pairs (or sequences): the caller divides once, by a
count over all ranks. `weights[N]` are constants; they carry probabilities in exact tests and importance or
source weights in training.
"""

from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rayalign.objectives.sums import paired_difference, weighted_sum


def bradley_terry_loss(demo_scores: Tensor, agent_scores: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """-sum log sigmoid(r(x, demo) - r(x, agent)): demo_scores[N], agent_scores[N], weights[N] -> scalar sum.

    Source: paper 1 (From Demonstrations to Rewards), eq. 1.2, the surrogate of its released code: each pair
    of the linear gradient (1.1) reweighted by its probability of being misranked, hence bounded and
    self-limiting. Against a frozen sampler q its minimiser is log pi^E/q + c(x) (T6), with no beta in it.

    Example: demo [2.], agent [0.] -> 0.1269.
    """
    return -weighted_sum(logsigmoid(paired_difference(demo_scores, agent_scores)), weights)


def linear_irl_loss(demo_scores: Tensor, agent_scores: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """-sum (r(x, demo) - r(x, agent)): demo_scores[N], agent_scores[N], weights[N] -> scalar sum.

    Source: paper 1 eq. 1.1, paper 3 (RFT) eq. 3.3. With agent samples from the current policy its gradient is
    -beta times that of the demonstrations' log-likelihood (T1). Departure: the factor 1/beta is left to the
    learning rate. Each pair has ONE weight for both sides: unequal weights give the reward a direction to
    drift in (T3). Unbounded below: bound the scores or the steps (T8).

    Example: demo [2.], agent [0.] -> -2.
    """
    return -weighted_sum(paired_difference(demo_scores, agent_scores), weights)


def logistic_loss(scores: Tensor, is_demo: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """-sum (log D of demos, log(1 - D) of samples): scores[B], is_demo[B] bool -> scalar sum.

    D = sigmoid(score). Source: paper 2 (AfD) eq. 2.3, negated. Unpaired. Its optimum is the log density ratio
    with no free constant (T6), so unlike the pair losses it is NOT invariant to a shift of the reward per
    prompt (T3).

    Example: scores [0., 0.], is_demo [True, False] -> 2 log 2.
    """
    if is_demo.dtype != torch.bool or is_demo.shape != scores.shape:
        got = f"{is_demo.dtype} {tuple(is_demo.shape)}"
        raise ValueError(f"is_demo must be bool of shape {tuple(scores.shape)}, got {got}")
    return -weighted_sum(logsigmoid(torch.where(is_demo, scores, -scores)), weights)


def preference_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, kappa: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """-sum log sigmoid(kappa (r(chosen) - r(rejected))): chosen_scores[N], rejected_scores[N] -> scalar sum.

    Source: paper 5 (AIHF), L2 of eq. 5.1. kappa is the inverse temperature of the annotators: demonstrations
    fix r/beta, preferences fix kappa r, and the two agree only if kappa is right (T39).
    """
    return -weighted_sum(logsigmoid(kappa * paired_difference(chosen_scores, rejected_scores)), weights)


def joint_reward_loss(
    demo_loss_sum: Tensor,
    preference_loss_sum: Tensor,
    *,
    demo_weight: float,
    preference_weight: float,
    num_demo_pairs: int,
    num_preference_pairs: int,
) -> Tensor:
    """w1 mean(demo pairs) + w2 mean(preference pairs): two scalar sums -> one scalar, already divided.

    Source: paper 5 (AIHF) eq. 5.1 and 5.2, negated. Counts are global (all ranks and micro-batches).
    Departure from the released code, which averages over the concatenation, so that its balance moves with
    the sizes of the two data sets: here each source has its own mean (T38). w2 = 0 is RFT (T18), w1 = 0 the
    usual preference reward. A source of no pairs adds nothing.
    """
    demo_term = demo_weight * demo_loss_sum / max(num_demo_pairs, 1)
    return demo_term + preference_weight * preference_loss_sum / max(num_preference_pairs, 1)


def pair_accuracy(demo_scores: Tensor, agent_scores: Tensor) -> Tensor:
    """Number of pairs with demo strictly above agent: demo_scores[N], agent_scores[N] -> count, no gradient.

    A tie counts as wrong, so a reward that says the same of everything has accuracy 0, not 1/2 (T12).
    """
    return (paired_difference(demo_scores, agent_scores).detach() > 0).sum()


def pair_accuracy_half_ties(demo_scores: Tensor, agent_scores: Tensor) -> Tensor:
    """Like pair_accuracy with ties counted half: demo_scores[N], agent_scores[N] -> scalar, no gradient."""
    margins = paired_difference(demo_scores, agent_scores).detach()
    return ((margins.sign() + 1) / 2).sum()


def margin_demo_minus_agent(demo_scores: Tensor, agent_scores: Tensor) -> Tensor:
    """Sum of r(demo) - r(agent): demo_scores[N], agent_scores[N] -> scalar sum, no gradient. A metric."""
    return paired_difference(demo_scores, agent_scores).detach().sum()


def standardise(scores: Tensor, *, mean: float, std: float) -> Tensor:
    """(score - mean) / std with moments measured on reference responses: scores[B] -> [B].

    Source: released code of paper 1 (eq. 1.3 of docs/algorithms.md). Dividing by std rescales the effective
    beta by std: beta = 0.05 on standardised scores is beta = 0.05 std on raw ones.
    """
    if not 0 < std < float("inf"):
        raise ValueError(f"the reward's std over the reference responses is {std}: it tells none apart")
    return (scores - mean) / std


REWARD_LINKS = MappingProxyType({"bradley_terry": bradley_terry_loss, "linear": linear_irl_loss})
