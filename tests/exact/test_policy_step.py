"""T9 and T10 of docs/algorithms.md: the KL penalty's book-keeping, and which advantages leave beta its meaning.

Expectations run over every ordered group of K responses of a token world (7 responses: 343 groups of 3).
"""

import itertools

import pytest
import torch
from torch import Tensor

from rayalign.objectives.advantages import group_relative_advantages, rloo_advantages
from rayalign.objectives.policy import (
    clipped_policy_loss,
    kl_penalised_rewards,
    kl_penalised_token_rewards,
    missing_end_scores,
    policy_gradient_loss,
)
from rayalign.objectives.segments import repeat_per_token, segment_sum

from .worlds import (
    TokenWorld,
    all_groups,
    descend,
    gibbs_logprobs,
    gradient,
    random_logprobs,
    random_table,
    total_variation,
)

WORLD = TokenWorld(num_tokens=3, max_length=2)
SCORES = random_table(7, seed=90)
REF_TABLE = WORLD.random_table(seed=91)


def test_t09_no_penalty_at_step_zero():
    """Policy == reference: every log-ratio is exactly 0, so rewards equal scores to the last bit."""
    lengths = WORLD.batch()[2]
    policy_logprobs, ref_logprobs = WORLD.token_logprobs(REF_TABLE), WORLD.token_logprobs(REF_TABLE.clone())
    assert torch.equal(policy_logprobs - ref_logprobs, torch.zeros_like(policy_logprobs))
    rewards = kl_penalised_rewards(SCORES, policy_logprobs, ref_logprobs, lengths, kl_coef=0.3)
    assert torch.equal(rewards, SCORES)


def test_t09_token_rewards_sum_to_score_minus_beta_log_ratio():
    """And all tokens but the last carry only their own penalty."""
    beta, lengths = 0.3, WORLD.batch()[2]
    policy_table = WORLD.random_table(seed=92)
    sides = WORLD.token_logprobs(policy_table), WORLD.token_logprobs(REF_TABLE)
    rewards = kl_penalised_rewards(SCORES, *sides, lengths, kl_coef=beta)
    log_ratios = WORLD.logprob_sums(policy_table) - WORLD.logprob_sums(REF_TABLE)
    torch.testing.assert_close(rewards, SCORES - beta * log_ratios, atol=1e-12, rtol=0)
    token_rewards = kl_penalised_token_rewards(SCORES, *sides, lengths, kl_coef=beta)
    torch.testing.assert_close(segment_sum(token_rewards, lengths), rewards, atol=1e-12, rtol=0)
    is_last = torch.zeros(len(token_rewards), dtype=torch.bool)
    is_last[lengths.cumsum(0) - 1] = True
    assert torch.equal(token_rewards[~is_last], (-beta * (sides[0] - sides[1]))[~is_last])


def test_t09_missing_end_replaces_the_score_and_keeps_the_penalty():
    """Four of the seven responses lack EOS: their score is gone, not lowered, and their KL still counts."""
    lengths, ended = WORLD.batch()[2], WORLD.ended
    assert ended.sum() == 3
    sides = WORLD.token_logprobs(WORLD.random_table(seed=92)), WORLD.token_logprobs(REF_TABLE)
    scores = missing_end_scores(SCORES, ended, penalty=-1.0)
    assert torch.equal(scores[ended], SCORES[ended])
    assert torch.equal(scores[~ended], torch.full((4,), -1.0, dtype=torch.float64))
    penalised = kl_penalised_rewards(scores, *sides, lengths, kl_coef=0.3)
    unscored = kl_penalised_rewards(torch.zeros_like(SCORES), *sides, lengths, kl_coef=0.3)
    torch.testing.assert_close(penalised[~ended], unscored[~ended] - 1.0)
    assert missing_end_scores(SCORES, ended, penalty=None) is SCORES


def test_t09_a_sequence_is_charged_for_its_own_tokens_only():
    """The item's 'pad tokens carry none': there are no pads here, so the risk is a token charged to a
    neighbour.

    Changing the tokens of one response, or adding an empty one beside it, moves no other reward.
    """
    lengths = torch.tensor([2, 0, 3])
    policy_logprobs, ref_logprobs = random_table(5, seed=93), random_table(5, seed=94)
    scores = random_table(3, seed=95)
    rewards = kl_penalised_rewards(scores, policy_logprobs, ref_logprobs, lengths, kl_coef=1.0)
    changed = policy_logprobs.clone()
    changed[2:] += 1.0
    moved = kl_penalised_rewards(scores, changed, ref_logprobs, lengths, kl_coef=1.0) - rewards
    torch.testing.assert_close(moved, torch.tensor([0.0, 0.0, -3.0], dtype=torch.float64))
    assert rewards[1] == scores[1]


def test_t09_a_gibbs_policy_has_the_same_reward_for_every_response():
    """r - beta log(pi / pi_ref) = beta log Z: a perfect policy leaves the estimator no variance at all."""
    beta = 0.5
    policy_table, prompt_value = WORLD.soft_bellman(SCORES, REF_TABLE, beta=beta)
    sides = WORLD.token_logprobs(policy_table), WORLD.token_logprobs(REF_TABLE)
    rewards = kl_penalised_rewards(SCORES, *sides, WORLD.batch()[2], kl_coef=beta)
    torch.testing.assert_close(rewards, prompt_value.expand(7), atol=1e-12, rtol=0)


def exact_policy_gradient(table: Tensor, *, kl_coef: float) -> Tensor:
    """Autograd of E_pi[r] - beta KL(pi || pi_ref) over all responses."""
    table = table.clone().requires_grad_()
    sums, ref_sums = WORLD.logprob_sums(table), WORLD.logprob_sums(REF_TABLE)
    return gradient((sums.exp() * (SCORES - kl_coef * (sums - ref_sums))).sum(), table)


def expected_estimate(table: Tensor, *, kl_coef: float, group_size: int, advantages_of, loss_of) -> Tensor:
    """The mean, over all groups with their probabilities, of the gradient that the package's pieces give."""
    table = table.clone().requires_grad_()
    groups = all_groups(7, group_size=group_size)
    samples = groups.flatten().tolist()
    group_ids = torch.arange(len(groups)).repeat_interleave(group_size)
    lengths = WORLD.batch(samples)[2]
    policy_logprobs = WORLD.token_logprobs(table, samples)
    old_logprobs, ref_logprobs = policy_logprobs.detach(), WORLD.token_logprobs(REF_TABLE, samples)
    rewards = kl_penalised_rewards(SCORES[samples], old_logprobs, ref_logprobs, lengths, kl_coef=kl_coef)
    advantages = repeat_per_token(advantages_of(rewards, group_ids), lengths)
    group_probs = WORLD.logprob_sums(table).detach()[groups].sum(-1).exp()
    weights = repeat_per_token(group_probs.repeat_interleave(group_size) / group_size, lengths)
    return -gradient(loss_of(policy_logprobs, old_logprobs, advantages, weights), table)


def reinforce(policy_logprobs, old_logprobs, advantages, weights):
    return policy_gradient_loss(policy_logprobs, advantages, weights=weights)


def clipped(policy_logprobs, old_logprobs, advantages, weights):
    loss, num_clipped = clipped_policy_loss(
        policy_logprobs, old_logprobs, advantages, weights=weights, clip_low=0.2, clip_high=0.2
    )
    assert num_clipped == 0
    return loss


@pytest.mark.parametrize("loss_of", [reinforce, clipped])
@pytest.mark.parametrize("group_size", [2, 3])
def test_t10_rloo_is_unbiased(group_size, loss_of):
    """Tokens, KL in the reward, leave-one-out: the expected gradient is that of E[r] - beta KL, for any K >=
    2.
    """
    table = WORLD.random_table(seed=100)
    estimate = expected_estimate(
        table, kl_coef=0.4, group_size=group_size, advantages_of=rloo_advantages, loss_of=loss_of
    )
    exact = exact_policy_gradient(table, kl_coef=0.4)
    assert exact.abs().max() > 1e-2
    torch.testing.assert_close(estimate, exact, atol=1e-12, rtol=0)


def test_t10_rloo_is_unbiased_for_groups_of_different_sizes():
    """Half the prompts with K = 2, half with K = 3, in one call and interleaved."""
    generator = torch.Generator().manual_seed(101)
    group_ids = torch.tensor([5, 2, 5, 2, 2])
    rewards = torch.randn(5, generator=generator, dtype=torch.float64)
    advantages = rloo_advantages(rewards, group_ids)
    for i in range(5):
        others = [j for j in range(5) if group_ids[j] == group_ids[i] and j != i]
        torch.testing.assert_close(advantages[i], rewards[i] - rewards[others].mean())


@pytest.mark.parametrize("group_size", [2, 3])
def test_t10_group_mean_without_std_is_rloo_shortened(group_size):
    """Dr. GRPO: (K - 1) / K times the policy gradient. The fixed point, hence beta, is untouched."""
    table = WORLD.random_table(seed=100)
    estimate = expected_estimate(
        table,
        kl_coef=0.4,
        group_size=group_size,
        advantages_of=lambda r, g: group_relative_advantages(r, g, divide_by_std=False),
        loss_of=reinforce,
    )
    exact = exact_policy_gradient(table, kl_coef=0.4)
    torch.testing.assert_close(estimate, exact * (group_size - 1) / group_size, atol=1e-12, rtol=0)


def test_t10_std_with_the_kl_inside_the_reward_keeps_the_gibbs_policy():
    """FOUND: T10's statement needs a condition. It holds for GRPO as published, with the KL in the LOSS (next
    tests).

    With the KL in the reward, as kl_penalised_rewards puts it, every response has the same reward at the
    Gibbs policy and every advantage is 0, whatever the std: the fixed point stays. But a step away the
    expected gradient is no multiple of the policy gradient any more, and it does not shrink with the
    distance: the std scales noise up to size one.
    """
    std_advantages = lambda r, g: group_relative_advantages(r, g, divide_by_std=True, eps=1e-9)  # noqa: E731
    setting = {"kl_coef": 0.4, "group_size": 3, "advantages_of": std_advantages, "loss_of": reinforce}
    gibbs_table, _ = WORLD.soft_bellman(SCORES, REF_TABLE, beta=0.4)
    assert expected_estimate(gibbs_table, **setting).abs().max() < 1e-5
    norms, cosines = [], []
    for distance in (1e-1, 1e-3):
        table = gibbs_table + distance * WORLD.random_table(seed=102)
        estimate, exact = expected_estimate(table, **setting), exact_policy_gradient(table, kl_coef=0.4)
        norms.append((estimate.norm() / exact.norm()).item())
        cosines.append(torch.cosine_similarity(estimate.flatten(), exact.flatten(), dim=0).item())
    assert norms[1] > 50 * norms[0]  # a hundred times closer, a gradient about as long
    assert max(cosines) < 0.999


def frequency_group(probs: list[float], *, group_size: int) -> Tensor:
    """A group whose shares of each action are exactly the probabilities: the population, as one group."""
    counts = [round(p * group_size) for p in probs]
    return torch.repeat_interleave(torch.arange(len(probs)), torch.tensor(counts))


def kl_in_loss_gradient(
    logits: Tensor, rewards: Tensor, ref_logprobs: Tensor, *, beta: float, divide_by_std: bool
):
    """Gradient of GRPO's loss (KL beside, not inside, the advantage) on the population of the policy."""
    logits = logits.clone().requires_grad_()
    logprobs = logits.log_softmax(-1)
    actions = frequency_group(logprobs.detach().exp().tolist(), group_size=1000)
    group_ids = torch.zeros(1000, dtype=torch.int64)
    advantages = group_relative_advantages(rewards[actions], group_ids, divide_by_std=divide_by_std, eps=0)
    loss = policy_gradient_loss(logprobs[actions], advantages) / 1000
    kl = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
    return gradient(loss + beta * kl, logits)


def test_t10_std_with_the_kl_in_the_loss_moves_beta():
    """GRPO's population fixed point is the Gibbs policy of beta * std_pi(r), not of beta (and without the std
    it is).

    Policy (.5, .3, .2); the reference is chosen so that the policy is Gibbs for one beta or the other.
    """
    rewards, beta = torch.tensor([3.0, 0.0, -1.0], dtype=torch.float64), 0.8
    logits = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    std = rewards[frequency_group([0.5, 0.3, 0.2], group_size=1000)].std()
    for fixed_beta, divide_by_std in [(beta * std, True), (beta, False)]:
        ref_logprobs = gibbs_logprobs(-rewards, logits, beta=fixed_beta)
        setting = {"rewards": rewards, "ref_logprobs": ref_logprobs, "beta": beta}
        assert kl_in_loss_gradient(logits, divide_by_std=divide_by_std, **setting).abs().max() < 1e-12
        assert kl_in_loss_gradient(logits, divide_by_std=not divide_by_std, **setting).abs().max() > 0.1


def grpo_fixed_point(rewards: Tensor, ref_logprobs: Tensor, *, beta: float, divide_by_std: bool) -> Tensor:
    """Where exact expected gradient ascent with groups of 3 and the KL in the loss comes to rest: log-probs
    [Y].
    """
    groups = all_groups(len(rewards), group_size=3)
    group_ids = torch.arange(len(groups)).repeat_interleave(3)
    advantages = group_relative_advantages(
        rewards[groups.flatten()], group_ids, divide_by_std=divide_by_std, eps=1e-12
    )

    def loss(logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        weights = logprobs.detach()[groups].sum(-1).exp().repeat_interleave(3) / 3
        kl = (logprobs.exp() * (logprobs - ref_logprobs)).sum()
        return policy_gradient_loss(logprobs[groups.flatten()], advantages, weights=weights) + beta * kl

    return descend(loss, ref_logprobs, lr=1.0, num_steps=800).log_softmax(-1)


def test_t10_std_makes_the_scale_of_the_reward_meaningless():
    """Ten times the reward leads std-GRPO to the SAME policy (so 1/beta no longer weighs reward against KL).

    Without the std the resting point is Gibbs at beta K / (K - 1), exactly, and moves with the scale.
    """
    rewards = torch.tensor([1.0, 0.2, -0.5, 0.0], dtype=torch.float64)
    ref_logprobs = random_logprobs(1, 4, seed=103, scale=0.5)[0]
    small, large = (
        grpo_fixed_point(c * rewards, ref_logprobs, beta=1.0, divide_by_std=True) for c in (1, 10)
    )
    assert total_variation(small, large) < 1e-6
    assert total_variation(large, gibbs_logprobs(10 * rewards, ref_logprobs, beta=1.0)) > 0.3
    plain = grpo_fixed_point(rewards, ref_logprobs, beta=1.0, divide_by_std=False)
    assert total_variation(plain, gibbs_logprobs(rewards, ref_logprobs, beta=1.5)) < 1e-6


def test_t10_std_can_collapse_the_policy():
    """Self-consistent Gibbs(beta std_pi(r)) on a large population: sharper policy, smaller std, sharper
    still.

    Each step solves the KL problem exactly for the advantages of the current policy, whose slope in the
    reward is 1 / std. Six actions as in T10; the std of the reward under the policy falls below a fiftieth of
    its value under Gibbs(beta), until a group of a million holds one action only.
    """
    rewards, beta = random_table(6, seed=104, scale=3.0).sort().values, 0.8
    ref_logprobs = torch.full((6,), 1 / 6, dtype=torch.float64).log()
    logprobs, stds = gibbs_logprobs(rewards, ref_logprobs, beta=beta), []
    while (actions := frequency_group(logprobs.exp().tolist(), group_size=10**6)).unique().numel() > 1:
        stds.append(rewards[actions].std().item())
        one_group = torch.zeros_like(actions)
        advantages = group_relative_advantages(rewards[actions], one_group, divide_by_std=True)
        slope = (advantages[-1] - advantages[0]) / (rewards[actions][-1] - rewards[actions][0])
        logprobs = gibbs_logprobs(slope * rewards, ref_logprobs, beta=beta)
        assert len(stds) < 20
    assert all(later < earlier for earlier, later in itertools.pairwise(stds)), stds
    assert stds[-1] < stds[0] / 50, stds
