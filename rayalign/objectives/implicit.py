"""Losses on the implicit reward beta log(policy / reference): IRFT, SPIN, DPO, IPO, GSIL and self-play AIHF.

Shapes: B sequences, N pairs. All log-probs are SUMS over the tokens of a response, EOS included (T17). Losses
are sums over pairs. The reference is the model that the round started from (SPIN, IRFT) or the first model
(DPO).
"""

from collections.abc import Callable
from types import MappingProxyType

from torch import Tensor, sigmoid
from torch.nn.functional import logsigmoid, relu

from rayalign.objectives.sums import check_vectors, paired_difference, weighted_sum

_MAX_EXPONENT = 20.0  # exp(20) = 5e8: a sequence's log-ratio can be hundreds


def implicit_rewards(policy_logprob_sums: Tensor, ref_logprob_sums: Tensor, *, beta: float) -> Tensor:
    """beta log(pi(y|x) / pi_ref(y|x)): policy_logprob_sums[B], ref_logprob_sums[B] -> [B].

    Source: paper 3, eq. 3.5 of docs/algorithms.md. Equals the explicit reward up to beta log Z(x), so
    compare it within a prompt only. Rewards of successive rounds telescope (T16): a model exported as a
    reward after several rounds with a moving reference needs the reference of the FIRST round.
    """
    return beta * (policy_logprob_sums - ref_logprob_sums)


def implicit_pair_loss(
    demo_policy_logprob_sums: Tensor,
    agent_policy_logprob_sums: Tensor,
    *,
    demo_ref_logprob_sums: Tensor,
    agent_ref_logprob_sums: Tensor,
    beta: float,
    link: str = "log_sigmoid",
    weights: Tensor | None = None,
) -> Tensor:
    """-sum h(beta (log-ratio of demo minus log-ratio of agent)): four [N], weights[N] -> scalar sum.

    Source: paper 3 (IRFT) eq. 3.5 with link h; h = log sigmoid is SPIN and, with preferences, DPO (T11); h
    linear is eq. 3.4 times beta. Subtracts in the order of the SPIN and DPO codes, hence equal to them to the
    last bit. The linear link is unbounded below: use it with few steps on fresh samples (T14).

    Example: policy demo [-1.], agent [-1.], ref demo [-2.], agent [-1.], beta 1 -> -log sigmoid(1) = 0.3133.
    """
    if link not in IMPLICIT_LINKS:
        raise ValueError(f"unknown link {link!r}: choose one of {sorted(IMPLICIT_LINKS)}")
    policy_margins = paired_difference(demo_policy_logprob_sums, agent_policy_logprob_sums)
    ref_margins = paired_difference(demo_ref_logprob_sums, agent_ref_logprob_sums).detach()
    losses = IMPLICIT_LINKS[link](beta * paired_difference(policy_margins, ref_margins))
    return weighted_sum(losses, weights)


def dpo_loss(
    chosen_policy_logprob_sums: Tensor,
    rejected_policy_logprob_sums: Tensor,
    *,
    chosen_ref_logprob_sums: Tensor,
    rejected_ref_logprob_sums: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """-sum log sigmoid(beta (log-ratio of chosen minus log-ratio of rejected)): four [N] -> scalar sum.

    Source: DPO (Rafailov et al. 2023) eq. 7; the preference term of direct and self-play AIHF (paper 5).
    """
    return implicit_pair_loss(
        chosen_policy_logprob_sums,
        rejected_policy_logprob_sums,
        demo_ref_logprob_sums=chosen_ref_logprob_sums,
        agent_ref_logprob_sums=rejected_ref_logprob_sums,
        beta=beta,
        weights=weights,
    )


def ipo_loss(
    chosen_policy_logprob_sums: Tensor,
    rejected_policy_logprob_sums: Tensor,
    *,
    chosen_ref_logprob_sums: Tensor,
    rejected_ref_logprob_sums: Tensor,
    beta: float,
    weights: Tensor | None = None,
) -> Tensor:
    """sum (log-ratio of chosen minus log-ratio of rejected - 1 / (2 beta))^2: four [N], weights[N] -> scalar sum.

    Source: IPO (Azar et al. 2023) eq. 17, with its tau called beta. On SUMS of log-probs, as printed. TRL divides
    each log-ratio by its number of tokens first (its authors say that the paper's experiments did): give this
    function those means to get TRL's number. The choice moves what beta means by a factor of the length.

    Example: policy chosen [-1.], rejected [-2.], references [-1.], [-1.], beta 0.5 -> (1 - 1)^2 = 0.
    """
    policy_margins = paired_difference(chosen_policy_logprob_sums, rejected_policy_logprob_sums)
    ref_margins = paired_difference(chosen_ref_logprob_sums, rejected_ref_logprob_sums).detach()
    log_ratios = paired_difference(policy_margins, ref_margins)
    return weighted_sum((log_ratios - 1 / (2 * beta)).square(), weights)


def gsil_loss(
    demo_log_ratios: Tensor,
    agent_log_ratios: Tensor,
    *,
    beta: float,
    link: str = "logistic",
    weights: Tensor | None = None,
) -> Tensor:
    """sum l(beta r_demo) + l(-beta r_agent), r = log(pi / pi_t): two [B], weights[B] -> scalar sum.

    Source: GSIL (Xiao et al. 2024), self-imitation by a density ratio: l is logistic -log sigma(z), hinge
    max(0, 1 - z), brier (1 - sigma(z))^2 or exp exp(-z). Agent samples come from pi_t, which is also the reference.
    Unpaired in content, though given as two vectors of one length. With logistic and beta = 1 its minimum is the
    expert exactly; with other betas it is not, and no tilt of it either (the policy must sum to one). Departure: in
    exp, z is held above -20, which keeps the loss finite.

    Example: both log-ratios [0.], link logistic -> 2 log 2.
    """
    if link not in GSIL_LINKS:
        raise ValueError(f"unknown link {link!r}: choose one of {sorted(GSIL_LINKS)}")
    check_vectors(demo_log_ratios, agent_log_ratios)
    loss = GSIL_LINKS[link]
    return weighted_sum(loss(beta * demo_log_ratios) + loss(-beta * agent_log_ratios), weights)


def _log_sigmoid_link(margins: Tensor) -> Tensor:
    return -logsigmoid(margins)


def _hinge_link(margins: Tensor) -> Tensor:
    return relu(1 - margins)


def _linear_link(margins: Tensor) -> Tensor:
    return -margins


def _brier_link(margins: Tensor) -> Tensor:
    return sigmoid(-margins).square()


def _exp_link(margins: Tensor) -> Tensor:
    return (-margins).clamp(max=_MAX_EXPONENT).exp()


IMPLICIT_LINKS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"log_sigmoid": _log_sigmoid_link, "hinge": _hinge_link, "linear": _linear_link}
)
GSIL_LINKS: MappingProxyType[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"logistic": _log_sigmoid_link, "hinge": _hinge_link, "brier": _brier_link, "exp": _exp_link}
)
