"""Our objectives against TRL's own code on the same log-probs and rewards, to 1e-6, values and gradients.

TRL returns means over pairs, sequences or tokens where ours are sums; the division is written out in each test.
"""

import pytest
import torch
from torch import Tensor

from rayalign.objectives.advantages import batch_whiten, group_relative_advantages, rloo_advantages
from rayalign.objectives.implicit import dpo_loss, implicit_pair_loss, ipo_loss
from rayalign.objectives.policy import clipped_policy_loss, kl_penalty_loss
from rayalign.objectives.segments import repeat_per_token, segment_mean, segment_sum
from tests.exact.worlds import gradient, random_table

from .shells import trl_advantages, trl_dpo_loss, trl_grpo_loss, trl_rloo_loss

CLOSE = {"atol": 1e-6, "rtol": 0}
LENGTHS = torch.tensor([3, 1, 5, 2, 4, 4])  # of three chosen and three rejected, or of six samples
NUM_TOKENS = int(LENGTHS.sum())
CLIPS = (0.2, 0.3)


def shared_logprobs() -> tuple[Tensor, Tensor]:
    """Token log-probs of a policy (a leaf) and of another model near it: two [T]."""
    policy = -random_table(NUM_TOKENS, seed=1).abs()
    return policy.clone().requires_grad_(), policy + 0.3 * random_table(NUM_TOKENS, seed=2)


def assert_agree(ours: Tensor, theirs: Tensor, parameter: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)
    grads = [gradient(loss, parameter) for loss in (ours, theirs)]
    torch.testing.assert_close(*grads, **CLOSE)
    assert grads[0].abs().max() > 1e-3


def pair_sides(policy: Tensor, ref: Tensor, *, per_token: bool = False) -> list[Tensor]:
    """Chosen and rejected of the policy, then of the reference: sums (ours) or means (TRL's IPO) over tokens."""
    reduce = segment_mean if per_token else segment_sum
    return [side for logprobs in (policy, ref) for side in reduce(logprobs, LENGTHS).chunk(2)]


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_dpo_sigmoid(trl, beta):
    policy, ref = shared_logprobs()
    chosen, rejected, ref_chosen, ref_rejected = pair_sides(policy, ref)
    refs = {"chosen_ref_logprob_sums": ref_chosen, "rejected_ref_logprob_sums": ref_rejected}
    theirs = trl_dpo_loss(trl, policy, ref, LENGTHS, loss_type="sigmoid", beta=beta)
    assert_agree(dpo_loss(chosen, rejected, **refs, beta=beta) / 3, theirs, policy)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_hinge(trl, beta):
    policy, ref = shared_logprobs()
    demo, agent, ref_demo, ref_agent = pair_sides(policy, ref)
    refs = {"demo_ref_logprob_sums": ref_demo, "agent_ref_logprob_sums": ref_agent}
    theirs = trl_dpo_loss(trl, policy, ref, LENGTHS, loss_type="hinge", beta=beta)
    assert_agree(implicit_pair_loss(demo, agent, **refs, beta=beta, link="hinge") / 3, theirs, policy)


@pytest.mark.parametrize("beta", [0.1, 2.0])
def test_ipo_is_ours_on_means_over_tokens(trl, beta):
    """TRL divides each log-ratio by the number of tokens; on sums, as the paper prints it, the numbers differ."""
    policy, ref = shared_logprobs()
    theirs = trl_dpo_loss(trl, policy, ref, LENGTHS, loss_type="ipo", beta=beta)

    def ours(*, per_token: bool) -> Tensor:
        chosen, rejected, ref_chosen, ref_rejected = pair_sides(policy, ref, per_token=per_token)
        refs = {"chosen_ref_logprob_sums": ref_chosen, "rejected_ref_logprob_sums": ref_rejected}
        return ipo_loss(chosen, rejected, **refs, beta=beta) / 3

    assert_agree(ours(per_token=True), theirs, policy)
    assert (ours(per_token=False) - theirs).abs() > 1e-2


REWARDS, GROUP_SIZE = random_table(12, seed=3), 4
GROUP_IDS = torch.arange(3).repeat_interleave(GROUP_SIZE)
TRL_EPS = 1e-4  # what TRL adds to a standard deviation


@pytest.fixture
def one_process(trl, monkeypatch):
    """TRL gathers texts over ranks for its logs; here is one rank."""
    for trainer in ("grpo_trainer", "rloo_trainer"):
        monkeypatch.setattr(f"trl.trainer.{trainer}.gather_object", lambda x: x)


@pytest.mark.usefixtures("one_process")
def test_rloo_advantages(trl):
    settings = {"reward_clip_range": None, "normalize_advantages": False}
    theirs = trl_advantages(trl.RLOOTrainer, REWARDS, group_size=GROUP_SIZE, **settings)
    torch.testing.assert_close(rloo_advantages(REWARDS, GROUP_IDS), theirs, **CLOSE)


@pytest.mark.usefixtures("one_process")
def test_rloo_advantages_whitened(trl):
    """TRL divides by the deviation with divisor B - 1, ours (as REINFORCE++ and PPO) has B: a factor near 1."""
    settings = {"reward_clip_range": None, "normalize_advantages": True}
    theirs = trl_advantages(trl.RLOOTrainer, REWARDS, group_size=GROUP_SIZE, **settings)
    advantages = rloo_advantages(REWARDS, GROUP_IDS)
    factor = (11 / 12) ** 0.5
    ours = factor * batch_whiten(advantages, eps=factor * TRL_EPS)
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize(("scale_rewards", "divide_by_std"), [("group", True), ("none", False)])
def test_grpo_advantages(trl, scale_rewards, divide_by_std):
    """Both deviations have divisor G - 1; TRL adds 1e-4 to it, we 1e-6 unless told."""
    settings = {
        "scale_rewards": scale_rewards,
        "multi_objective_aggregation": "sum_then_normalize",
        "environment_factories": None,
        "environments": None,
        "tools": None,
        "use_vllm": False,
        "num_iterations": 1,
        "vllm_importance_sampling_correction": False,
    }
    theirs = trl_advantages(trl.GRPOTrainer, REWARDS, group_size=GROUP_SIZE, **settings)
    ours = group_relative_advantages(REWARDS, GROUP_IDS, divide_by_std=divide_by_std, eps=TRL_EPS)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    if divide_by_std:
        default = group_relative_advantages(REWARDS, GROUP_IDS, divide_by_std=True)
        assert (default - theirs).abs().max() < 1e-3


def test_ppo_clip_per_token(trl):
    """GRPO's surrogate, with two bounds: values, gradients, and the number of tokens that were clipped."""
    policy, old = shared_logprobs()
    advantages = random_table(6, seed=4)
    theirs, clipped_share = trl_grpo_loss(trl, policy, old, LENGTHS, advantages, clips=CLIPS)
    ours, num_clipped = clipped_policy_loss(
        policy, old, repeat_per_token(advantages, LENGTHS), clip_low=CLIPS[0], clip_high=CLIPS[1]
    )
    assert_agree(ours / 6, theirs, policy)
    assert num_clipped.item() == pytest.approx(clipped_share * NUM_TOKENS)
    assert num_clipped > 0


def test_ppo_clip_per_sequence(trl):
    """RLOO's surrogate: our loss on log-probs of whole responses, one "token" each."""
    policy, old = shared_logprobs()
    advantages = random_table(6, seed=5)
    theirs = trl_rloo_loss(trl, policy, old, LENGTHS, advantages, clips=CLIPS)
    sums = segment_sum(policy, LENGTHS), segment_sum(old, LENGTHS)
    ours, num_clipped = clipped_policy_loss(*sums, advantages, clip_low=CLIPS[0], clip_high=CLIPS[1])
    assert_agree(ours / 6, theirs, policy)
    assert 0 < num_clipped < 6


def test_grpos_kl_in_the_loss(trl):
    """beta k3 beside the clipped surrogate, with gradient."""
    policy, old = shared_logprobs()
    ref, advantages = old + 0.5 * random_table(NUM_TOKENS, seed=5), random_table(6, seed=4)
    theirs, _ = trl_grpo_loss(trl, policy, old, LENGTHS, advantages, clips=CLIPS, beta=0.7, ref=ref)
    clipped, _ = clipped_policy_loss(
        policy, old, repeat_per_token(advantages, LENGTHS), clip_low=CLIPS[0], clip_high=CLIPS[1]
    )
    assert_agree((clipped + 0.7 * kl_penalty_loss(policy, ref)) / 6, theirs, policy)
