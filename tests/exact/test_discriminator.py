"""T21, T22, T24 and T26 of docs/algorithms.md: AfD's discriminator, its closed form, and what the policy is paid."""

import math

import pytest
import torch
from torch import Tensor

from rayalign.objectives.implicit import implicit_rewards
from rayalign.objectives.policy import kl_penalised_rewards, policy_gradient_loss
from rayalign.objectives.reward import DIVERGENCES, logistic_loss, logistic_pair_loss
from rayalign.objectives.segments import repeat_per_token

from .worlds import (
    Bandit,
    TokenWorld,
    centred,
    descend,
    gibbs_logprobs,
    gradient,
    minimise,
    random_logprobs,
    random_table,
    total_variation,
)

WORLD = TokenWorld(num_tokens=3, max_length=3)
LENGTHS = WORLD.batch()[2]
BASE_TABLE, SFT_TABLE = WORLD.random_table(seed=210, scale=0.5), WORLD.random_table(seed=211, scale=0.5)
BASE_SUMS, SFT_SUMS = WORLD.logprob_sums(BASE_TABLE), WORLD.logprob_sums(SFT_TABLE)
CLOSED_FORM = implicit_rewards(SFT_SUMS, BASE_SUMS, beta=1.0)  # Init-SFT, without training


def discriminator_loss(logits: Tensor, positive_probs: Tensor, negative_probs: Tensor) -> Tensor:
    """The classifier (2.3) on the two distributions themselves: logits[Y]."""
    is_demo = torch.arange(2 * len(logits)) < len(logits)
    return logistic_loss(logits.repeat(2), is_demo, weights=torch.cat([positive_probs, negative_probs]))


def test_t21_optimal_init_sft_logits_are_the_log_ratio():
    """log pi_SFT - log pi_0 over whole responses, which is the reward that needs no training."""
    start = torch.zeros_like(BASE_SUMS)
    found = minimise(lambda h: discriminator_loss(h, SFT_SUMS.exp(), BASE_SUMS.exp()), start)
    torch.testing.assert_close(found, SFT_SUMS - BASE_SUMS, atol=1e-6, rtol=0)
    torch.testing.assert_close(CLOSED_FORM, SFT_SUMS - BASE_SUMS)


def test_t21_a_trained_discriminator_approaches_it():
    """By gradient steps towards the optimum of its data, and with more samples towards the closed form."""
    generator = torch.Generator().manual_seed(212)

    def trained(num_samples: int, num_steps: int) -> float:
        shares = [
            torch.multinomial(sums.exp(), num_samples, replacement=True, generator=generator).bincount(minlength=15)
            / num_samples
            for sums in (SFT_SUMS, BASE_SUMS)
        ]
        start = torch.zeros_like(BASE_SUMS)
        found = descend(lambda h: discriminator_loss(h, *shares), start, lr=5.0, num_steps=num_steps)
        return (BASE_SUMS.exp() * (found - CLOSED_FORM).abs()).sum().item()

    few_steps, half_way, long = (trained(200_000, num_steps) for num_steps in (1, 10, 200))
    assert long < half_way / 5 < few_steps / 8
    assert long < 0.03
    assert trained(1000, 200) > 2 * long


def test_t21_pairs_of_both_find_it_too():
    """As many of each in pairs: the same classifier, closed form included (Bradley-Terry leaves a constant, T6)."""
    world = Bandit(torch.ones(1, dtype=torch.float64), SFT_SUMS[None], BASE_SUMS[None])
    weights = world.pair_probs(world.ref_logprobs)
    start = torch.zeros_like(world.ref_logprobs)
    found = minimise(lambda h: logistic_pair_loss(*world.pairs(h), weights=weights), start)
    torch.testing.assert_close(found[0], CLOSED_FORM, atol=1e-6, rtol=0)


def reinforced(rewards: Tensor, *, kl_coef: float) -> Tensor:
    """Where KL-RL from the base comes to rest, its gradient made of the package's pieces: log-probs [Y]."""
    ref_logprobs = WORLD.token_logprobs(BASE_TABLE)

    def loss(table: Tensor) -> Tensor:
        logprobs = WORLD.token_logprobs(table)
        probs = WORLD.logprob_sums(table).detach().exp()
        penalised = kl_penalised_rewards(rewards, logprobs, ref_logprobs, LENGTHS, kl_coef=kl_coef)
        objective = (probs * penalised).sum()
        advantages = repeat_per_token(penalised - objective, LENGTHS)
        surrogate = policy_gradient_loss(logprobs, advantages, weights=repeat_per_token(probs, LENGTHS))
        return surrogate - surrogate.detach() - objective  # L-BFGS wants the value beside the gradient

    return WORLD.logprob_sums(minimise(loss, BASE_TABLE))


@pytest.mark.parametrize("kl_coef", [1.0, 0.5])
def test_t22_kl_rl_on_the_closed_form_gives_sft_or_goes_past_it(kl_coef):
    """beta = 1 reproduces pi_SFT, beta = 1/2 ends at pi_SFT^2 / pi_0, normalised."""
    expected = (BASE_SUMS + (SFT_SUMS - BASE_SUMS) / kl_coef).log_softmax(-1)
    if kl_coef == 1:
        torch.testing.assert_close(expected, SFT_SUMS)
    assert total_variation(reinforced(CLOSED_FORM, kl_coef=kl_coef)[None], expected[None]) < 1e-6


def test_t22_token_by_token_it_is_the_same_tilt():
    """The soft-Bellman policy of that reward: extrapolation is a property of whole responses."""
    table, _ = WORLD.soft_bellman(CLOSED_FORM, BASE_TABLE, beta=0.5)
    expected = (2 * SFT_SUMS - BASE_SUMS).log_softmax(-1)
    torch.testing.assert_close(WORLD.logprob_sums(table), expected, atol=1e-12, rtol=0)


GOLDEN = {  # at logits 0, 1 and -2
    "reverse_kl": [0.0, 1.0, -2.0],
    "jensen_shannon": [-math.log(2), -math.log1p(math.exp(-1)), -math.log1p(math.exp(2))],
    "jensen_shannon_softplus": [math.log(2), math.log1p(math.e), math.log1p(math.exp(-2))],
    "forward_kl": [0.0, -math.e, 2 * math.exp(-2)],
    "forward_kl_exp": [1.0, math.e, math.exp(-2)],
}
RISING = set(DIVERGENCES) - {"forward_kl"}


@pytest.mark.parametrize("name", DIVERGENCES)
def test_t24_rewards_at_a_logit(name):
    """Golden numbers; the two forms of GAIL keep their sign; extreme logits stay finite in float32."""
    logits = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    assert DIVERGENCES[name](logits).tolist() == pytest.approx(GOLDEN[name])
    many = DIVERGENCES[name](torch.linspace(-1e4, 1e4, 101))
    assert many.isfinite().all()
    if name == "jensen_shannon":
        assert (many <= 0).all()
    if name == "jensen_shannon_softplus":
        assert (many >= 0).all()


def test_t24_each_reward_lowers_the_divergence_it_is_named_after():
    """With the optimal logits h = log(pi_E / pi), in expectation over pi: -KL(pi || pi_E), -KL(pi_E || pi), and for
    GAIL with -log(1 - D), beside the demonstrations' log D, twice the Jensen-Shannon divergence minus 2 log 2.
    """
    expert, policy = random_logprobs(6, seed=240), random_logprobs(6, seed=241)
    logits = expert - policy
    paid = {name: (policy.exp() * reward(logits)).sum() for name, reward in DIVERGENCES.items()}
    torch.testing.assert_close(paid["reverse_kl"], -(policy.exp() * (policy - expert)).sum())
    torch.testing.assert_close(paid["forward_kl"], -(expert.exp() * (expert - policy)).sum())
    middle = torch.logaddexp(expert, policy) - math.log(2)
    halves = [(p.exp() * (p - middle)).sum() / 2 for p in (expert, policy)]
    log_d = (expert.exp() * DIVERGENCES["jensen_shannon"](logits)).sum()
    torch.testing.assert_close(
        log_d - paid["jensen_shannon_softplus"], 2 * (halves[0] + halves[1]) - 2 * math.log(2)
    )


def test_t24_the_forward_kl_reward_does_not_rank():
    """FOUND: -h exp(h) is largest at h = -1 and negative for h > 0: the better the discriminator likes a response,
    the LESS it pays. Nothing may be selected by it (best of N, accuracy). The others rise with h.
    """
    logits = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    assert logits[DIVERGENCES["forward_kl"](logits).argmax()].item() == pytest.approx(-1)
    for name in RISING:
        assert (DIVERGENCES[name](logits).diff() > 0).all(), name
    assert (DIVERGENCES["forward_kl"](logits[logits > -1]).diff() < 0).all()


EXPERT, POLICY = random_logprobs(6, seed=261), gibbs_logprobs(
    random_table(6, seed=262), random_logprobs(6, seed=261), beta=2.0
)


def paid_gradient(name: str) -> Tensor:
    """The expected policy gradient on the reward at the optimal logits, as a gradient to DESCEND: [Y]."""
    logits = POLICY.clone().requires_grad_()
    rewards = DIVERGENCES[name](EXPERT - POLICY)
    return gradient(policy_gradient_loss(logits.log_softmax(-1), rewards, weights=POLICY.exp()), logits)


def test_t24_a_policy_gradient_on_the_forward_kl_reward_goes_the_wrong_way():
    """FOUND: FAIRL's reward has the right EXPECTATION and the wrong GRADIENT. Its values depend on the policy, a
    policy gradient holds them fixed, and what is left points away from the expert (cosine -0.97 here).

    The derivative of sum pi f(u), u = pi_E / pi, is f(u) - u f'(u), which is what must be paid, with a minus: h for
    the reverse KL (up to a constant), but exp(h), not -h exp(h), for the forward KL. It is also f*(T) of the general
    row of AfD's table at the optimum. With exp(h) the gradient is the forward KL's, exactly.
    """
    logits = POLICY.clone().requires_grad_()
    forward_kl = gradient((EXPERT.exp() * (EXPERT - logits.log_softmax(-1))).sum(), logits)
    torch.testing.assert_close(paid_gradient("forward_kl_exp"), forward_kl, atol=1e-12, rtol=0)
    reverse_kl = gradient((logits.softmax(-1) * (logits.log_softmax(-1) - EXPERT)).sum(), logits)
    torch.testing.assert_close(paid_gradient("reverse_kl"), reverse_kl, atol=1e-12, rtol=0)
    cosine = torch.cosine_similarity(paid_gradient("forward_kl"), forward_kl, 0)
    assert cosine < -0.9


@pytest.mark.parametrize("name", DIVERGENCES)
def test_t24_what_repeated_steps_with_an_optimal_discriminator_do(name):
    """Every reward that rises with h leads to the expert; FAIRL's leads away from it, to one response."""
    logits = POLICY
    for _ in range(2000):
        logits = logits.detach().requires_grad_()
        logprobs = logits.log_softmax(-1)
        rewards = DIVERGENCES[name](EXPERT - logprobs.detach())
        loss = policy_gradient_loss(logprobs, rewards, weights=logprobs.detach().exp())
        logits = logits - 0.5 * gradient(loss, logits)
    before, after = (total_variation(x.log_softmax(-1)[None], EXPERT[None]).item() for x in (POLICY, logits))
    assert after > 2 * before if name == "forward_kl" else after < 0.01 * before


@pytest.mark.parametrize("name", DIVERGENCES)
def test_t26_nothing_is_left_to_learn_at_the_expert(name):
    """pi = pi_E: the discriminator says 1/2 everywhere, every reward is the same, and the policy's gradient is 0."""
    start = random_table(15, seed=260)
    logits = minimise(lambda h: discriminator_loss(h, SFT_SUMS.exp(), SFT_SUMS.exp()), start)
    torch.testing.assert_close(logits.sigmoid(), torch.full_like(logits, 0.5), atol=1e-6, rtol=0)
    rewards = DIVERGENCES[name](logits)
    torch.testing.assert_close(centred(rewards), torch.zeros_like(rewards), atol=1e-6, rtol=0)
    table = SFT_TABLE.clone().requires_grad_()
    weights = repeat_per_token(SFT_SUMS.exp(), LENGTHS)
    loss = policy_gradient_loss(WORLD.token_logprobs(table), repeat_per_token(rewards, LENGTHS), weights=weights)
    assert gradient(loss, table).abs().max() < 1e-6
