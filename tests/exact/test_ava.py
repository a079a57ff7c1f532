"""AVA (T27 to T34): its terms by closed forms and by enumeration, the two forms of Q, and ablations term by term."""

from dataclasses import replace
from math import log, pi, tau

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from rayalign.objectives.ava import (
    AvaObjective,
    AvaTerms,
    AvaTokens,
    attention_weights,
    ava_terms,
    capped,
    contrastive_sum,
    counted_tokens,
    floored,
    gaussian_logprobs,
    kl_to_standard,
    response_rewards,
    td_errors,
)
from rayalign.objectives.boltzmann import QTokens, chunked_q, head_q, pretrained_q
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.objectives.segments import segment_sum

from .worlds import TokenWorld, gradient, minimise, random_table

LENGTHS = torch.tensor([3, 1, 2, 4])  # two pairs: [chosen, rejected, chosen, rejected]
NUM_TOKENS, V = int(LENGTHS.sum()), 5
CHOSEN = torch.tensor([True, False, True, False])
FIRST, LAST = torch.tensor([0, 3, 4, 6]), torch.tensor([2, 3, 5, 9])
ENDED = torch.ones(4, dtype=torch.bool)
LABELS = torch.tensor([0, 3, 1, 4, 4, 2, 0, 1, 1, 3])
FULL = AvaObjective(
    lambda_td=0.5,
    gamma=0.9,
    end_term=True,
    negative_cap=None,
    td_on="both",
    contrast="sum",
    contrast_link="log_sigmoid",
    contrast_weight=7.0,
    negatives=True,
    irl=True,
    contrastive=True,
)
ONLY_LIKELIHOOD = replace(FULL, irl=False, negatives=False, contrastive=False)


def q_of(logits: Tensor, *, alpha: float | None = 4.0, beta: float = 1.0, labels: Tensor = LABELS) -> QTokens:
    return head_q(logits, labels, beta=beta) if alpha is None else pretrained_q(logits, labels, alpha=alpha, beta=beta)


def random_tokens(*, alpha: float | None = 4.0, beta: float = 1.0) -> AvaTokens:
    found = q_of(random_table(NUM_TOKENS, V, seed=1), alpha=alpha, beta=beta)
    return AvaTokens(*found, random_table(NUM_TOKENS, seed=2), random_table(NUM_TOKENS, seed=3, scale=0.3).exp())


def terms_of(tokens: AvaTokens, objective: AvaObjective, *, ended: Tensor = ENDED, paired: bool = True) -> AvaTerms:
    rejected = ~CHOSEN if paired else torch.zeros_like(CHOSEN)
    return ava_terms(tokens, LENGTHS, ended=ended, rejected=rejected, objective=objective)


def test_t27_the_kl_is_that_of_torch_and_of_samples():
    """(mu^2 + s^2 - 1 - log s^2) / 2, with both derivatives; 0 at (0, 1) and nowhere else."""
    means, deviations = random_table(50, seed=0).requires_grad_(), random_table(50, seed=1).exp().requires_grad_()
    ours = kl_to_standard(means, deviations)
    theirs = kl_divergence(Normal(means, deviations), Normal(torch.zeros(()).double(), 1.0))
    torch.testing.assert_close(ours, theirs)
    for parameter in (means, deviations):
        torch.testing.assert_close(
            *(torch.autograd.grad(kl.sum(), parameter, retain_graph=True)[0] for kl in (ours, theirs))
        )
    assert (ours > 0).all() and float(kl_to_standard(torch.zeros(1), torch.ones(1))) == 0
    mean, deviation = torch.tensor(0.7).double(), torch.tensor(0.4).double()
    assert float(kl_to_standard(mean, deviation)) == pytest.approx(0.74129, abs=1e-5)
    draws = mean + deviation * random_table(200_000, seed=2)
    sampled = Normal(mean, deviation).log_prob(draws) - Normal(0.0, 1.0).log_prob(draws)
    assert float(sampled.mean()) == pytest.approx(0.74129, abs=4 * float(sampled.std()) / 200_000**0.5)


def test_t27_the_td_likelihood_is_that_of_torch():
    values, means, deviations = (random_table(9, seed=seed) for seed in range(3))
    expected = Normal(means, deviations.exp()).log_prob(values)
    torch.testing.assert_close(gaussian_logprobs(values, means, deviations.exp()), expected)


def step_loss(delta: float, lambda_td: float, *, floor: float = 0.0):
    """The KL and TD terms of one token, by (mu, log sigma)."""

    def loss(point: Tensor) -> Tensor:
        mean, deviation = point[0], floored(point[1].exp(), floor)
        return kl_to_standard(mean, deviation) - lambda_td * gaussian_logprobs(torch.full_like(mean, delta), mean, deviation)

    return loss


@pytest.mark.parametrize(("delta", "lambda_td"), [(0.0, 0.5), (1.3, 0.5), (-4.0, 0.5), (0.4, 0.9), (2.5, 1.0), (-1.8, 1.0)])
def test_t28_the_best_reward_of_a_fixed_td_error(delta, lambda_td):
    """mu = lambda delta / (s + lambda), s = 1 - lambda + lambda delta^2 s / (s + lambda)^2; at lambda 1 s = |delta| - 1."""
    best = minimise(step_loss(delta, lambda_td), torch.tensor([0.1, -0.1], dtype=torch.float64))
    mean, variance = float(best[0]), float((2 * best[1]).exp())
    assert mean == pytest.approx(lambda_td * delta / (variance + lambda_td), abs=1e-6)
    shrunk = lambda_td * delta**2 * variance / (variance + lambda_td) ** 2
    assert variance == pytest.approx(1 - lambda_td + shrunk, abs=1e-6)
    if lambda_td == 1:
        assert variance == pytest.approx(abs(delta) - 1, abs=1e-6)


@pytest.mark.parametrize("delta", [0.0, 0.8, 3.0])
def test_t28_above_lambda_one_there_is_no_maximum_without_a_floor(delta):
    """At mu = delta the loss falls by (lambda - 1) log 10 for each tenth of sigma, to no end; lambda <= 1 does not."""

    def at(lambda_td: float, log_sigma: float, floor: float = 0.0) -> float:
        point = torch.tensor([delta, log_sigma], dtype=torch.float64)
        return float(step_loss(delta, lambda_td, floor=floor)(point))

    tenth = log(10)
    falls = [at(1.5, -tenth * n) - at(1.5, -tenth * (n + 1)) for n in (3, 6, 20)]
    assert falls == pytest.approx([0.5 * tenth] * 3, abs=1e-4)
    assert at(1.5, -40, floor=0.1) == pytest.approx(at(1.5, -60, floor=0.1))  # bounded by what it is on the floor
    assert abs(at(1.0, -40) - at(1.0, -60)) < 1e-6  # the flat border
    assert at(0.5, -60) > at(0.5, -40) + 9


def test_t28_lambda_one_is_the_border():
    """FOUND: at lambda 1 and |delta| < 1 the supremum is not attained: sigma -> 0. Only a floor gives a maximum, on it."""

    def along(log_sigma: float, floor: float) -> float:
        variance = torch.tensor(2 * log_sigma, dtype=torch.float64).exp() + floor**2
        best_mean = float(0.6 / (1 + variance))
        return float(step_loss(0.6, 1.0, floor=floor)(torch.tensor([best_mean, log_sigma], dtype=torch.float64)))

    for floor in (0.0, 0.1):
        losses = [along(log_sigma, floor) for log_sigma in (0.0, -1.0, -3.0, -9.0, -18.0)]
        assert losses == sorted(losses, reverse=True) and losses[-2] - losses[-1] < 1e-7
    assert losses[-1] - along(-18.0, 0.0) == pytest.approx(0.1**2 * (1 - 0.6**2) / 2, rel=0.02)  # the floor's price


def test_t28_a_deviation_on_the_floor_can_leave_it():
    """A clamp's gradient is 0 below the floor; this one's is not."""
    log_deviation = torch.tensor([-3.0], dtype=torch.float64, requires_grad=True)
    deviation = floored(log_deviation.exp(), 0.1)
    assert 0.1 < float(deviation.detach()) < 0.12
    loss = -gaussian_logprobs(torch.tensor([2.0]).double(), torch.zeros(1).double(), deviation)
    assert float(gradient(loss.sum(), log_deviation)) < -1  # a TD error that is too large for it widens it
    raw = torch.tensor([-0.3, 0.0, 2.0])
    torch.testing.assert_close(floored(raw.exp(), 0.0), raw.exp())


WORLD = TokenWorld(num_tokens=3, max_length=3)  # token 0 ends a response


def world_terms(table: Tensor, objective: AvaObjective, *, alpha: float | None) -> AvaTerms:
    """AVA-d on every response of the world, rewards being standard."""
    rows, labels, lengths = WORLD.batch()
    found = q_of(table[rows], alpha=alpha, labels=labels)
    tokens = AvaTokens(*found, torch.zeros_like(found.q), torch.ones_like(found.q))
    nothing = torch.zeros(len(lengths), dtype=torch.bool)
    return ava_terms(tokens, lengths, ended=WORLD.ended, rejected=nothing, objective=objective)


def end_gradient(table: Tensor, objective: AvaObjective, *, alpha: float | None) -> Tensor:
    """The loss's gradient to the end token's logits of all prefixes."""
    table = table.clone().requires_grad_()
    return gradient(world_terms(table, objective, alpha=alpha).loss, table)[:, 0]


def test_t29_without_irl_it_is_sft_with_or_without_the_last_token():
    """Q = logits, beta 1: with the end term the log-likelihood of all that ended; literally one token fewer a response."""
    table = WORLD.random_table(seed=5)
    _, _, lengths = WORLD.batch()
    logprobs = WORLD.token_logprobs(table)
    last = torch.zeros(len(logprobs), dtype=torch.bool)
    last[lengths.cumsum(0) - 1] = True
    ended = torch.repeat_interleave(WORLD.ended, lengths)
    for end_term, counted in ((True, ~last | ended), (False, ~last)):
        loss = world_terms(table, replace(ONLY_LIKELIHOOD, end_term=end_term), alpha=None).loss
        torch.testing.assert_close(loss, negative_log_likelihood(logprobs[counted]))
    both = [negative_log_likelihood(logprobs), negative_log_likelihood(logprobs[last & ~ended])]
    with_end = world_terms(table, ONLY_LIKELIHOOD, alpha=None).loss
    torch.testing.assert_close(with_end, both[0] - both[1])


def test_t29_the_end_token_learns_only_with_the_end_term():
    """Its logit's gradient as a label: pushed up with the end term; without it, never more than another's softmax."""
    table = WORLD.random_table(seed=5)
    assert (end_gradient(table, replace(ONLY_LIKELIHOOD, end_term=False), alpha=None) >= 0).all()  # never up
    assert end_gradient(table, ONLY_LIKELIHOOD, alpha=None).min() < -0.1


def test_t29_td_reaches_the_end_token_through_the_next_q():
    """FOUND: "literal (4.2) never trains the final token" holds of its likelihood only.

    With gamma and lambda above 0 the last-but-one TD error holds Q of the last token (T34: no stop-gradient), and pulls it
    either way; only at lambda 0 or gamma 0 is the last token untouched.
    """
    logits = random_table(3, V, seed=7)
    grads = {}
    for lambda_td, gamma in ((0.5, 0.9), (0.0, 0.9), (0.5, 0.0)):
        leaf = logits.clone().requires_grad_()
        found = q_of(leaf, labels=LABELS[:3])
        tokens = AvaTokens(*found, torch.zeros_like(found.q), torch.ones_like(found.q))
        objective = replace(FULL, end_term=False, lambda_td=lambda_td, gamma=gamma)
        one = torch.tensor([3])
        terms = ava_terms(tokens, one, ended=one > 0, rejected=one < 0, objective=objective)
        grads[lambda_td, gamma] = gradient(terms.loss, leaf)[-1].abs().max()
    assert grads[0.5, 0.9] > 1e-3 and grads[0.0, 0.9] == 0 and grads[0.5, 0.0] == 0


def test_t29_the_pretrained_q_is_not_sft():
    """FOUND: its gradient to the logits carries pi(label): what the model holds for impossible is not learned at all."""
    logits = torch.zeros(1, V, dtype=torch.float64)
    pulls = {}
    for unlikely in (0.0, -5.0, -15.0):
        leaf = logits.clone()
        leaf[0, 2] = unlikely
        leaf.requires_grad_()
        found = q_of(leaf, alpha=10.0, labels=torch.tensor([2]))
        pulls[unlikely] = float(gradient(found.log_b.sum(), leaf)[0, 2])
    assert pulls[0.0] > 1 > pulls[-5.0] > 1e-3 > pulls[-15.0] * 1e2 > 0
    floor = -log(torch.tensor(10.0).exp() + V - 1)
    assert float(found.log_b.detach()) > floor  # FOUND: (4.3) is bounded with this Q; only a Q head's is not


def test_t30_td_errors_telescope():
    """gamma 1: Q of the first token; without the end's, minus Q of the last. gamma 0: Q itself."""
    q = random_table(NUM_TOKENS, seed=1)
    deltas = td_errors(q, LENGTHS, gamma=1.0)
    torch.testing.assert_close(segment_sum(deltas, LENGTHS), q[FIRST])
    inner = deltas * counted_tokens(LENGTHS, ended=~ENDED, num_tokens=NUM_TOKENS)
    torch.testing.assert_close(segment_sum(inner, LENGTHS), q[FIRST] - q[LAST])
    torch.testing.assert_close(td_errors(q, LENGTHS, gamma=0.0), q)
    torch.testing.assert_close(deltas[0], q[0] - q[1])


def test_t30_one_token_has_no_td_error_unless_it_ends():
    """FOUND: "fewer than 3 positions" counts the prompt's last one and starts at y_1: here, fewer than 2 response tokens."""
    tokens = AvaTokens(*(part[3:4] for part in random_tokens()))
    one = torch.tensor([1])
    for end_term, ended, counts in ((True, True, True), (True, False, False), (False, True, False)):
        objective = replace(FULL, end_term=end_term)
        terms = ava_terms(tokens, one, ended=torch.tensor([ended]), rejected=one < 0, objective=objective)
        assert bool(terms.td != 0) is bool(terms.kl != 0) is bool(terms.likelihood != 0) is counts
    cut = counted_tokens(LENGTHS, ended=CHOSEN, num_tokens=NUM_TOKENS)
    assert (~cut).nonzero()[:, 0].tolist() == [3, 9]  # the last tokens of the two that did not end


def test_t30_responses_do_not_see_each_other():
    """What stands before and behind a response in the flat batch changes nothing of it."""
    tokens = random_tokens()
    whole = terms_of(tokens, FULL)
    parts = []
    for rows, lengths in ((slice(0, 4), LENGTHS[:2]), (slice(4, 10), LENGTHS[2:])):
        part = AvaTokens(*(column[rows] for column in tokens))
        pair = torch.tensor([False, True])
        parts.append(ava_terms(part, lengths, ended=ENDED[:2], rejected=pair, objective=FULL))
    for name, term in whole.by_name().items():
        torch.testing.assert_close(sum(part.by_name()[name] for part in parts), term)


def test_t31_boltzmann_over_the_pretrained_q():
    """softmax(beta log softmax(alpha p)) = softmax(alpha beta p); log B is beta Q at beta 1 and only there."""
    logits = random_table(NUM_TOKENS, V, seed=1, scale=2.0)
    probs = logits.softmax(-1)
    for alpha, beta in ((4.0, 1.0), (10.0, 0.3), (1.0, 2.5)):
        q, log_b, policy = q_of(logits, alpha=alpha, beta=beta)
        every_q = (alpha * probs).log_softmax(-1)
        torch.testing.assert_close((beta * every_q).softmax(-1), (alpha * beta * probs).softmax(-1))
        place = LABELS[:, None]
        torch.testing.assert_close(q, every_q.gather(-1, place)[:, 0])
        torch.testing.assert_close(log_b, (beta * every_q).log_softmax(-1).gather(-1, place)[:, 0])
        torch.testing.assert_close(policy, probs.log().gather(-1, place)[:, 0])
        assert torch.allclose(log_b, beta * q) is (beta == 1)


def test_t31_a_q_head():
    """Q itself, and B its softmax at inverse temperature beta."""
    rows = random_table(NUM_TOKENS, V, seed=1, scale=3.0).requires_grad_()
    q, log_b, _ = q_of(rows, alpha=None, beta=0.5)
    torch.testing.assert_close(q, rows.gather(-1, LABELS[:, None])[:, 0])
    torch.testing.assert_close(log_b, (rows / 2).log_softmax(-1).gather(-1, LABELS[:, None])[:, 0])
    assert torch.autograd.gradcheck(lambda r: q_of(r, alpha=None, beta=0.5)[:2], rows)


@pytest.mark.parametrize(("alpha", "beta"), [(4.0, 1.0), (10.0, 0.3)])
def test_t31_the_gradient_of_the_pretrained_q(alpha, beta):
    logits = random_table(4, V, seed=1, scale=2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda rows: q_of(rows, alpha=alpha, beta=beta, labels=LABELS[:4])[:2], logits)
    assert not q_of(logits, labels=LABELS[:4]).policy_logprobs.requires_grad


@pytest.mark.parametrize("alpha", [4.0, None])
def test_chunks_change_nothing(alpha):
    """Nor do blocks of rows within one; no tokens at all still call the head."""
    num = 1200
    hidden, weight = random_table(num, 3, seed=0), random_table(3, V, seed=1).requires_grad_()
    labels = torch.randint(V, (num,), generator=torch.Generator().manual_seed(2))
    found = []
    for chunk in (num, 500, 7):
        parts = chunked_q(lambda h: h @ weight, hidden, labels, alpha=alpha, beta=0.7, chunk_tokens=chunk)
        found.append((*parts, gradient((parts.q * hidden[:, 0] + parts.log_b).sum(), weight)))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])
    calls = []
    nothing = {"chunk_tokens": 4, "min_chunks": 3}
    chunked_q(lambda h: calls.append(1) or h @ weight, hidden[:0], labels[:0], alpha=alpha, beta=1, **nothing)
    assert len(calls) == 3


def test_masked_logits_of_the_pretrained_q():
    """A logit of -inf is probability 0: no number becomes NaN."""
    logits = random_table(2, V, seed=1)
    logits[:, 3] = float("-inf")
    logits.requires_grad_()
    found = q_of(logits, labels=torch.tensor([0, 1]))
    slope = gradient(found.q.sum(), logits)
    assert torch.isfinite(found.q).all() and torch.isfinite(slope).all() and (slope[:, 3] == 0).all()


def test_t32_two_equal_responses_cancel():
    """Likelihood terms add up to 0, the sigmoid's value is 1/2, and the two sides' gradients are equal and opposite."""
    means = random_table(6, seed=2).requires_grad_()
    log_b = -random_table(3, seed=4).abs().repeat(2)
    tokens = AvaTokens(log_b, log_b, log_b, means, torch.ones_like(log_b))
    twice, rejected = torch.tensor([3, 3]), torch.tensor([False, True])
    objective = replace(FULL, irl=False, contrast="last", contrast_link="sigmoid", contrast_weight=1.0)
    equal = AvaTokens(log_b, log_b, log_b, means[:3].repeat(2), torch.ones_like(log_b))
    terms = ava_terms(equal, twice, ended=rejected | True, rejected=rejected, objective=objective)
    assert float(terms.likelihood + terms.negatives) == 0
    assert float(terms.contrast.detach()) == -0.5
    terms = ava_terms(tokens, twice, ended=rejected | True, rejected=rejected, objective=objective)
    slopes = gradient(terms.contrast, means)
    assert slopes[2] == -slopes[5] != 0 and (slopes[[0, 1, 3, 4]] == 0).all()


def test_t32_the_cap_stops_the_push_and_leaves_the_values():
    """Tokens that the policy holds for less likely than the cap are not pushed down further; values still cancel.

    FOUND: a cap on log B itself, max(log B, -6), would be idle in a small vocabulary and silence the whole term in one of
    more than e^6 tokens, where log B of an even policy over the pre-trained Q is below -6 from the start.
    """
    log_b = torch.tensor([-1.0, -8.0, -1.0, -8.0], dtype=torch.float64, requires_grad=True)
    tokens = AvaTokens(log_b, log_b, log_b.detach(), torch.zeros(4).double(), torch.ones(4).double())
    two, rejected = torch.tensor([2, 2]), torch.tensor([False, True])
    objective = replace(FULL, irl=False, contrastive=False, negative_cap=-6.0)
    terms = ava_terms(tokens, two, ended=two > 0, rejected=rejected, objective=objective)
    assert float(terms.loss.detach()) == 0
    assert gradient(terms.loss, log_b).tolist() == [-1, -1, 1, 0]
    assert capped(log_b, log_b, None) is log_b
    even = q_of(torch.zeros(1, 500, dtype=torch.float64), alpha=10.0, labels=torch.tensor([0]))
    assert float(even.log_b) < -6 < float(even.policy_logprobs) + 1


@pytest.mark.parametrize(("link", "at_zero", "most"), [("sigmoid", 1 / 4, 1 / 4), ("log_sigmoid", 1 / 2, 1.0)])
def test_t32_slopes_of_the_contrastive_term(link, at_zero, most):
    """The sigmoid's is at most 1/4, and vanishes on pairs ranked badly wrong, where log sigmoid's is 1."""
    margins = torch.linspace(-30, 30, 601, dtype=torch.float64).requires_grad_()
    slopes = gradient(contrastive_sum(margins, link=link), margins)
    assert float(slopes[300]) == pytest.approx(at_zero)
    assert (slopes > 0).all() and float(slopes.max()) <= most
    assert float(slopes[0]) == pytest.approx(0 if link == "sigmoid" else 1, abs=1e-9)


def test_contrast_over_the_sum_or_the_last_token():
    means = random_table(NUM_TOKENS, seed=2)
    sums = torch.stack([part.sum() for part in means.split(LENGTHS.tolist())])
    torch.testing.assert_close(response_rewards(means, LENGTHS, over="sum"), sums)
    torch.testing.assert_close(response_rewards(means, LENGTHS, over="last"), means[LAST])
    with_empty = torch.tensor([0, *LENGTHS.tolist(), 0])
    torch.testing.assert_close(response_rewards(means, with_empty, over="last")[1:-1], means[LAST])


def test_t33_attention_weights_are_a_distribution_over_each_response():
    """At least 0, 1 in sum, by hand in the small, even where all keys are alike, and blind to other responses."""
    queries, keys = random_table(NUM_TOKENS, 3, seed=1, scale=2.0), random_table(NUM_TOKENS, 3, seed=2)
    weights = attention_weights(queries, keys, LENGTHS)
    assert (weights >= 0).all()
    torch.testing.assert_close(segment_sum(weights, LENGTHS), torch.ones(4).double())
    table = torch.stack([torch.tensor([q @ k / 3**0.5 for k in keys[:3]]).softmax(-1) for q in queries[:3]])
    torch.testing.assert_close(weights[:3], table.mean(0).double())
    even = attention_weights(queries, torch.ones_like(keys), LENGTHS)
    torch.testing.assert_close(even, torch.repeat_interleave(1 / LENGTHS.double(), LENGTHS))
    alone = attention_weights(queries[6:], keys[6:], LENGTHS[3:])
    torch.testing.assert_close(weights[6:], alone)
    torch.testing.assert_close(attention_weights(queries, keys, torch.tensor([3, 0, 1, 2, 4, 0])), weights)


def test_t33_terms_by_hand():
    """One objective written out token by token with torch.distributions."""
    tokens, ended = random_tokens(), torch.tensor([True, True, False, True])
    objective = replace(FULL, negative_cap=-1.7)
    likelihood = negatives = kl = td = 0.0
    values, start = [], 0
    for row, length in enumerate(LENGTHS.tolist()):
        for t in range(start, start + length):
            is_last = t == start + length - 1
            if is_last and not ended[row]:
                continue
            reward = Normal(tokens.means[t], tokens.deviations[t])
            delta = tokens.q[t] - (0 if is_last else objective.gamma * tokens.q[t + 1])
            kl += kl_divergence(reward, Normal(torch.zeros(()).double(), 1.0))
            td -= objective.lambda_td * reward.log_prob(delta)
            if CHOSEN[row]:
                likelihood -= tokens.log_b[t]
            else:
                negatives += tokens.log_b[t]
        values.append(tokens.means[start : start + length].sum())
        start += length
    margins = torch.stack([values[0] - values[1], values[2] - values[3]])
    terms = terms_of(tokens, objective, ended=ended)
    expected = AvaTerms(likelihood, negatives, kl, td, -7.0 * margins.sigmoid().log().sum())
    for name, term in terms.by_name().items():
        torch.testing.assert_close(term, expected.by_name()[name])
    torch.testing.assert_close(terms.loss, likelihood + negatives + kl + td + expected.contrast)


@pytest.mark.parametrize(
    ("ablation", "removed"),
    [
        ({"negatives": False}, {"negatives"}),
        ({"irl": False}, {"kl", "td"}),
        ({"contrastive": False}, {"contrast"}),
        ({"lambda_td": 0.0}, {"td"}),
    ],
)
def test_t33_an_ablation_removes_exactly_its_term(ablation, removed):
    full, cut = (terms_of(random_tokens(), objective) for objective in (FULL, replace(FULL, **ablation)))
    for name, term in full.by_name().items():
        assert term != 0
        assert cut.by_name()[name] == (0 if name in removed else term), name
    torch.testing.assert_close(full.loss - cut.loss, sum(full.by_name()[name] for name in removed))


def test_t33_td_on_chosen_leaves_the_rejected_out():
    """TD and KL of the two sides add up; the rest stays."""
    tokens = random_tokens()
    both, chosen = terms_of(tokens, FULL), terms_of(tokens, replace(FULL, td_on="chosen"))
    turned = ava_terms(tokens, LENGTHS, ended=ENDED, rejected=CHOSEN, objective=replace(FULL, td_on="chosen"))
    torch.testing.assert_close(chosen.kl + turned.kl, both.kl)
    torch.testing.assert_close(chosen.td + turned.td, both.td)
    assert (chosen.likelihood, chosen.negatives, chosen.contrast) == (both.likelihood, both.negatives, both.contrast)


def test_demonstrations_have_no_pairs():
    """AVA-d: all likelihoods count, nothing is pushed down or compared."""
    tokens = random_tokens()
    terms = terms_of(tokens, FULL, paired=False)
    torch.testing.assert_close(terms.likelihood, -tokens.log_b.sum())
    assert terms.negatives == terms.contrast == 0 and terms.td != 0


@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.0])
@pytest.mark.parametrize("alpha", [4.0, None])
def test_t34_gradients_of_the_td_term(alpha, gamma):
    """Through this Q and, with gamma, through the next one, and into both outputs of the reward head; by hand."""
    logits = random_table(3, V, seed=1)
    leaves = [logits.requires_grad_(), *(random_table(3, seed=seed).requires_grad_() for seed in (2, 3))]
    q, *others = q_of(leaves[0], alpha=alpha, labels=LABELS[:3])
    tokens = AvaTokens(q, *others, leaves[1], leaves[2].exp())
    three = torch.tensor([3])
    td = ava_terms(tokens, three, ended=three > 0, rejected=three < 0, objective=replace(FULL, gamma=gamma)).td
    by_q, by_mean, by_log_sigma = torch.autograd.grad(td, [q, *leaves[1:]], retain_graph=True)
    errors = (td_errors(q, three, gamma=gamma) - tokens.means) / tokens.deviations
    pull = FULL.lambda_td * errors / tokens.deviations  # of each delta
    torch.testing.assert_close(by_q, pull - gamma * torch.cat([torch.zeros(1).double(), pull[:-1]]))
    torch.testing.assert_close(by_mean, -pull)
    torch.testing.assert_close(by_log_sigma, FULL.lambda_td * (1 - errors**2))
    assert (gradient(td, leaves[0]).abs().amax(-1) > 0).all()


def test_constants_of_the_gaussian():
    """The TD term's constant, lambda log sqrt(2 pi) a token, is there: losses of different lambda compare."""
    zero, one = torch.zeros(1), torch.ones(1)
    assert float(gaussian_logprobs(zero, zero, one)) == pytest.approx(-log(tau) / 2) == pytest.approx(-log(2 * pi) / 2)


def test_shapes_that_do_not_fit_are_refused():
    tokens = random_tokens()
    with pytest.raises(ValueError, match="vectors of one length"):
        terms_of(tokens._replace(q=tokens.q[:-1]), FULL)
    with pytest.raises(ValueError, match="lengths cover"):
        attention_weights(tokens.q[:, None], tokens.q[:, None], LENGTHS[:-1])
    with pytest.raises(ValueError, match=r"want rows \[T, V\]"):
        pretrained_q(random_table(3, V, seed=0), LABELS, alpha=1.0, beta=1.0)
    with pytest.raises(ValueError, match="one length"):  # a pair without its other side
        ava_terms(tokens, LENGTHS, ended=ENDED, rejected=torch.tensor([True, False, False, False]), objective=FULL)
