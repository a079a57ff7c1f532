"""Losses that teach an explicit reward: pairwise, linear and logistic on demonstrations, and preferences.

Shapes: B sequences, N pairs. A pair is one demonstration and one sample of the agent for the same prompt,
each scored with one number. Every loss is a SUM over pairs (or sequences): the caller divides once, by a
count over all ranks. `weights[N]` are constants; they carry probabilities in exact tests and importance or
source weights in training.
"""

from collections.abc import Callable
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from rayalign.objectives.sums import check_vectors, paired_difference, weighted_sum

_MAX_LOGIT = 20.0  # 20 exp(20) = 1e10: still finite in float32 and bfloat16


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


def logistic_pair_loss(demo_scores: Tensor, agent_scores: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """logistic_loss on as many demos as samples: demo_scores[N], agent_scores[N], weights[N] -> scalar sum.

    Source: paper 2 (AfD) eq. 2.3, negated, in the shape of the pair losses; a pair's weight holds for both sides.
    The same optimum as bradley_terry_loss, without its free constant per prompt (T6, T21).

    Example: demo [0.], agent [0.] -> 2 log 2.
    """
    check_vectors(demo_scores, agent_scores)
    return -weighted_sum(logsigmoid(demo_scores) + logsigmoid(-agent_scores), weights)


def preference_loss(
    chosen_scores: Tensor, rejected_scores: Tensor, *, kappa: float = 1.0, weights: Tensor | None = None
) -> Tensor:
    """-sum log sigmoid(kappa (r(chosen) - r(rejected))): chosen_scores[N], rejected_scores[N] -> scalar sum.

    Source: paper 5 (AIHF), L2 of eq. 5.1. kappa is the inverse temperature of the annotators: demonstrations
    fix r/beta, preferences fix kappa r, and the two agree only if kappa is right (T39).
    """
    return -weighted_sum(logsigmoid(kappa * paired_difference(chosen_scores, rejected_scores)), weights)


def joint_coefficients(
    *,
    demo_weight: float,
    preference_weight: float,
    num_demonstrations: int,
    num_preferences: int,
    weighting: Literal["counts", "means"],
) -> tuple[float, float]:
    """Factors of the MEAN demo-pair loss and of the MEAN preference loss: two scalars, (for demos, for preferences).

    Source: paper 5 (AIHF) eq. 5.1 and 5.2, negated. |D| and |P| are the rows of the two data sets, not of a batch.
    "counts": w1 |D| / (|D| + |P|) and w2 |P| / (|D| + |P|), that is, the sums of both log-likelihoods divided once,
    as in the released code, which averages over the concatenation. With w1 = w2 this is the maximum-likelihood
    estimate from all rows: each tells as much as another, so the larger set counts for more (T37). A source of no
    rows adds nothing, and |P| = 0 gives exactly w1.
    "means": w1 and w2, whatever the counts: the balance stays when a data set grows (T38).
    w2 = 0 is RFT (T18), w1 = 0 the usual preference reward (T35).

    Example: weights 1 and 1, 30 demonstrations, 10 preferences -> counts (0.75, 0.25), means (1., 1.).
    """
    if weighting == "means":
        return demo_weight, preference_weight
    if weighting != "counts":
        raise ValueError(f"weighting is {weighting!r}: choose one of ['counts', 'means']")
    if min(num_demonstrations, num_preferences) < 0:
        raise ValueError(f"counts cannot be negative: {num_demonstrations} and {num_preferences}")
    total = max(num_demonstrations + num_preferences, 1)
    return demo_weight * (num_demonstrations / total), preference_weight * (num_preferences / total)


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


def _reverse_kl_reward(logits: Tensor) -> Tensor:
    return logits


def _jensen_shannon_reward(logits: Tensor) -> Tensor:
    return logsigmoid(logits)


def _jensen_shannon_softplus_reward(logits: Tensor) -> Tensor:
    return softplus(logits)


def _forward_kl_reward(logits: Tensor) -> Tensor:
    logits = logits.clamp(-_MAX_LOGIT, _MAX_LOGIT)
    return -logits * logits.exp()


def _forward_kl_exp_reward(logits: Tensor) -> Tensor:
    return logits.clamp(-_MAX_LOGIT, _MAX_LOGIT).exp()


PAIR_LOSSES: MappingProxyType[str, Callable[..., Tensor]] = MappingProxyType(
    {"bradley_terry": bradley_terry_loss, "linear": linear_irl_loss, "logistic": logistic_pair_loss}
)

# What the policy is paid, from a discriminator's logits h[B] -> rewards[B], named by the divergence between policy
# and demonstrator. Source: paper 2 (AfD) eq. 2.4 and its table: AIRL h; GAIL log D and -log(1 - D); FAIRL -h exp(h).
# With h at its optimum log(pi_E / pi) the expected reward is -KL(pi || pi_E) for AIRL and -KL(pi_E || pi) for FAIRL.
# But a policy gradient holds rewards fixed, and then FAIRL's points AWAY from the demonstrator (T24): it is here as
# published, for measuring. `forward_kl_exp`, exp(h), is f*(T) of the table's general row: its policy gradient is the
# forward KL's, exactly. Both of these hold h within +-20, so that they stay finite.
DIVERGENCES: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "reverse_kl": _reverse_kl_reward,
        "jensen_shannon": _jensen_shannon_reward,
        "jensen_shannon_softplus": _jensen_shannon_softplus_reward,
        "forward_kl": _forward_kl_reward,
        "forward_kl_exp": _forward_kl_exp_reward,
    }
)
