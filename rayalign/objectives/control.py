"""Losses of a reward of states and actions, for episodes and segments of steps.

Shapes: B transitions of demonstrations, C of the policy, P pairs of segments. Like everything in this folder they take
tensors and give tensors; unlike the sums over pairs of `reward.py`, the two terms of an episode are means over steps, since
the two sides differ in number.
"""

import torch
from torch import Tensor

from rayalign.objectives.policy import clipped_policy_loss
from rayalign.objectives.reward import logistic_loss


def occupancy_gap_loss(demo_rewards: Tensor, agent_rewards: Tensor, *, horizon: int) -> Tensor:
    """horizon (mean r(agent) - mean r(demo)): demo_rewards[B], agent_rewards[C] -> scalar, for ONE episode.

    Source: ML-IRL and AIHF (arXiv 2406.06874) eq. 5.2, negated, as in their code: the gradient of an episode's
    log-likelihood under the policy that is optimal for the reward, times that policy's entropy coefficient (T1).
    Departures: the steps are not discounted, and the factor 1/entropy coefficient is left to `demonstration_weight`.

    Example: demo [1.], agent [0.], horizon 10 -> -10.
    """
    return horizon * (agent_rewards.mean() - demo_rewards.mean())


def discriminator_loss(demo_logits: Tensor, agent_logits: Tensor) -> Tensor:
    """-(mean log D(demo) + mean log(1 - D(agent))): demo_logits[B], agent_logits[C] -> scalar.

    Source: GAIL (arXiv 1606.03476) and AIRL (1710.11248), whose reward is then a function of the logit.

    Example: logits of 0 -> 2 log 2.
    """
    demo = logistic_loss(demo_logits, torch.ones_like(demo_logits, dtype=torch.bool)) / len(demo_logits)
    agent = logistic_loss(agent_logits, torch.zeros_like(agent_logits, dtype=torch.bool)) / len(agent_logits)
    return demo + agent


def slope_penalty(gradients: Tensor) -> Tensor:
    """mean over B of (|gradient| - 1)^2: gradients[B, N] of a reward by its inputs -> scalar.

    Source: WGAN-GP (arXiv 1704.00028) eq. 3, at points between the two sides; in imitation DAC (1809.02925).

    Example: [[3., 4.]] -> 16.
    """
    return (gradients.norm(dim=-1) - 1.0).square().mean()


def segment_returns(rewards: Tensor, segments: Tensor, *, num: int) -> Tensor:
    """Returns of segments [N = num]: sums of rewards[T] by the segment that each belongs to, segments[T] in 0..N-1.

    Example: rewards [1., 2., 4.], segments [0, 0, 1], num 2 -> [3., 4.].
    """
    return rewards.new_zeros(num).index_add(0, segments, rewards)


def clamped_frac(rewards: Tensor, clamp: float | None) -> Tensor:
    """The share of rewards[B] at the bound, where the gradient is 0: scalar, no gradient."""
    if clamp is None:
        return rewards.new_zeros(())
    return (rewards.detach().abs() >= clamp).float().mean()


def sac_loss(
    *,
    q: Tensor,
    q_actor: Tensor,
    logprob: Tensor,
    next_q: Tensor,
    next_logprob: Tensor,
    log_entropy_coef: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    discount: float,
    target_entropy: float,
    actor_weight: float = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Soft actor-critic on B transitions: the sum of the critics', the actor's and the coefficient's loss, and metrics.

    q[2, B] of the actions taken, the others [B]; next_q is the smaller of the targets', q_actor that of the critics with
    their parameters held fixed. Each term reaches its own parameters only. A truncated episode is no terminated one. With
    an `actor_weight` of 0 the critics learn alone.

    Source: Haarnoja et al., arXiv 1812.05905, with squared errors as in its code.
    """
    coef = log_entropy_coef.detach().exp()
    wanted = rewards + discount * (1.0 - terminated) * (next_q - coef * next_logprob)
    critic = 0.5 * (q - wanted.detach()).square().mean(dim=1).sum()
    actor = (coef * logprob - q_actor).mean()
    entropy = -log_entropy_coef * (logprob.detach().mean() + target_entropy)
    metrics = {
        "critic_loss": critic.detach(),
        "q_mean": q_actor.detach().mean(),
        "entropy": -logprob.detach().mean(),
        "entropy_coef": coef,
    }
    return critic + actor_weight * (actor + entropy), metrics


def cloning_loss(means: Tensor, actions: Tensor, is_demonstrated: Tensor, q: Tensor, *, share: float) -> Tensor:
    """mean |q| times the mean squared distance of means[B, A] to actions[B, A] where is_demonstrated[B] is 1: scalar.

    `share` of all rows are demonstrations. It stands for this batch's own share, so that the parts of a batch that several
    learners see weigh alike; each takes its own part's |q|.

    Source: TD3+BC (arXiv 2106.06860) eq. 5, over its lambda, so that its alpha of 2.5 is a weight of 1/2.5 here. There all
    data are demonstrations.

    Example: means [[1., 0.], [9., 9.]], actions 0, is_demonstrated [1., 0.], q [-2., 2.], share 0.5 -> 2 (1 + 0) / 2 = 1.
    """
    distances = (means - actions).square().mean(dim=-1)
    return q.detach().abs().mean() * (distances * is_demonstrated).mean() / share


def ppo_loss(
    *,
    logprob: Tensor,
    old_logprob: Tensor,
    advantages: Tensor,
    values: Tensor,
    returns: Tensor,
    entropy: Tensor,
    clip: float,
    value_coef: float,
    entropy_coef: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Proximal policy optimisation on B steps, all [B]: the mean of actor's and critic's loss less entropy, and metrics.

    Source: Schulman et al. 2017 (arXiv 1707.06347), eq. 9, with half the squared error of the values.
    """
    surrogate, num_clipped = clipped_policy_loss(logprob, old_logprob, advantages, clip_low=clip, clip_high=clip)
    critic = 0.5 * (values - returns).square().mean()
    loss = surrogate / len(logprob) + value_coef * critic - entropy_coef * entropy.mean()
    log_ratios = (logprob - old_logprob).detach()
    metrics = {
        "critic_loss": critic.detach(),
        "entropy": entropy.detach().mean(),
        "clipped_frac": num_clipped / len(logprob),
        "kl_from_sampler": (torch.expm1(log_ratios) - log_ratios).mean(),
    }
    return loss, metrics
