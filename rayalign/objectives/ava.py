"""AVA (paper 4): the variational objective that ties a Gaussian reward of each token to the TD error of Q.

Shapes: B responses, T = sum(lengths) response tokens (prompts are not among them), N pairs, d width of the attention.
At token t: q[t] = Q(s_t, y_t) and log_b[t] read the state before it, the reward N(means[t], deviations[t]^2) the state
after it. Everything here is a SUM; the caller divides once by pairs or demonstrations over all ranks.
"""

from dataclasses import dataclass, fields
from math import log, pi
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rayalign.objectives.segments import check_cover, segment_sum
from rayalign.objectives.sums import check_vectors, paired_difference


class AvaTokens(NamedTuple):
    """What a model says of the response tokens. All [T], with gradient but for policy_logprobs."""

    q: Tensor
    log_b: Tensor  # of the Boltzmann policy over Q
    policy_logprobs: Tensor  # of the language model; of B where Q has a head of its own
    means: Tensor
    deviations: Tensor  # above 0


@dataclass(frozen=True)
class AvaObjective:
    """The terms that count, and their weights; `config/ava.py` says what each is for."""

    lambda_td: float
    gamma: float
    end_term: bool
    negative_cap: float | None
    td_on: Literal["both", "chosen"]
    contrast: Literal["sum", "last"]
    contrast_link: Literal["log_sigmoid", "sigmoid"]
    contrast_weight: float
    negatives: bool
    irl: bool
    contrastive: bool


@dataclass(frozen=True)
class AvaTerms:
    """Scalar sums to be minimised, each with its weight; one that does not count is exactly 0."""

    likelihood: Tensor  # -log B of chosen tokens
    negatives: Tensor  # +log B of rejected tokens
    kl: Tensor  # KL(q || N(0, 1))
    td: Tensor  # -lambda log q(delta)
    contrast: Tensor

    @property
    def loss(self) -> Tensor:
        """Their sum."""
        return sum(self.by_name().values(), start=torch.zeros_like(self.kl))

    def by_name(self) -> dict[str, Tensor]:
        """{name: term}."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def ava_terms(
    tokens: AvaTokens, lengths: Tensor, *, ended: Tensor, rejected: Tensor, objective: AvaObjective
) -> AvaTerms:
    """AVA-d (4.2) where nothing is rejected, AVA-p (4.3) with the contrastive term (4.4) where pairs are given.

    lengths[B]; ended[B] bool: the response ends with its end token; rejected[B] bool: the worse one of its pair. The n-th
    rejected response pairs with the n-th one that is not.

    Departures: log B in place of (4.3)'s beta Q (boltzmann.py); rejected tokens are pushed down to `negative_cap` only; the
    last token of a response that ended counts, with delta = Q, under `end_term` (T29); whose TD and KL terms count is a
    choice.
    """
    check_vectors(*tokens)
    of_rejected = torch.repeat_interleave(rejected, lengths, output_size=len(tokens.q))
    counted = counted_tokens(lengths, ended=ended & objective.end_term, num_tokens=len(tokens.q))
    zero = tokens.means.new_zeros(())
    pushed = capped(tokens.log_b, tokens.policy_logprobs, objective.negative_cap)[counted & of_rejected]
    kl = td = contrast = zero
    if objective.irl:
        tied = counted if objective.td_on == "both" else counted & ~of_rejected
        means, deviations = tokens.means[tied], tokens.deviations[tied]
        deltas = td_errors(tokens.q, lengths, gamma=objective.gamma)[tied]
        kl = kl_to_standard(means, deviations).sum()
        td = -objective.lambda_td * gaussian_logprobs(deltas, means, deviations).sum()
    if objective.contrastive and bool(rejected.any()):
        values = response_rewards(tokens.means, lengths, over=objective.contrast)
        margins = paired_difference(values[~rejected], values[rejected])
        contrast = -objective.contrast_weight * contrastive_sum(margins, link=objective.contrast_link)
    return AvaTerms(
        likelihood=-tokens.log_b[counted & ~of_rejected].sum(),
        negatives=pushed.sum() if objective.negatives else zero,
        kl=kl,
        td=td,
        contrast=contrast,
    )


def kl_to_standard(means: Tensor, deviations: Tensor) -> Tensor:
    """d = KL(N(mu, s^2) || N(0, 1)) = (mu^2 + s^2 - 1 - log s^2) / 2: two [T] -> [T]. Source: (4.2).

    Example: means [0.7], deviations [0.4] -> [0.7413].
    """
    return (means.square() + deviations.square() - 1) / 2 - deviations.log()


def gaussian_logprobs(values: Tensor, means: Tensor, deviations: Tensor) -> Tensor:
    """log N(value; mu, s^2): three [T] -> [T]. Source: (4.2), with the TD errors as values.

    With lambda > 1 before it, and the KL beside it, there is no maximum: s -> 0 at mu = delta (T28).
    """
    return -deviations.log() - log(2 * pi) / 2 - ((values - means) / deviations).square() / 2


def td_errors(q: Tensor, lengths: Tensor, *, gamma: float) -> Tensor:
    """delta[t] = Q[t] - gamma Q[t + 1] within each response, Q after its last token being 0: q[T], lengths[B] -> [T].

    Source: (4.2). No stop-gradient on the next Q, as in AVRIL's code (T34). At gamma 1 a response's sum is the Q of its
    first token, and without the last one Q_first - Q_last (T30).

    Example: q [-1., -2., -4.], lengths [2, 1], gamma 1 -> [1., -2., -4.].
    """
    last = last_tokens(lengths, num_tokens=len(q))
    return q - gamma * torch.where(last, 0.0, q.roll(-1))


def counted_tokens(lengths: Tensor, *, ended: Tensor, num_tokens: int) -> Tensor:
    """Which tokens have a TD error: all but the last one, and that too where the response has ended.

    lengths[B], ended[B] -> [T] bool. A response cut at the limit goes on: what its last token leads to is not known.
    """
    last = last_tokens(lengths, num_tokens=num_tokens)
    return ~last | torch.repeat_interleave(ended, lengths, output_size=num_tokens)


def last_tokens(lengths: Tensor, *, num_tokens: int) -> Tensor:
    """Marks the last token of each response: lengths[B] -> [T] bool."""
    check_cover(lengths, num_tokens=num_tokens)
    last = torch.zeros(num_tokens, dtype=torch.bool, device=lengths.device)
    last[lengths.cumsum(0)[lengths > 0] - 1] = True
    return last


def capped(log_b: Tensor, policy_logprobs: Tensor, cap: float | None) -> Tensor:
    """log B, without a gradient where the policy's own log-prob is below the cap: [T], [T] -> [T]; values stay.

    (4.3) pushes rejected tokens down without end where Q has a head of its own. The pre-trained Q's log B is bounded, but
    by the vocabulary: from V = 403 on, log B of an even policy is below -6. So the cap looks at the policy instead, which
    means the same in every vocabulary, and equal responses cancel exactly (T32).
    """
    return log_b if cap is None else torch.where(policy_logprobs < cap, log_b.detach(), log_b)


def response_rewards(means: Tensor, lengths: Tensor, *, over: Literal["sum", "last"]) -> Tensor:
    """A response's reward: the sum of its tokens' or that of the last one: means[T], lengths[B] -> [B]."""
    if over == "last":
        means = torch.where(last_tokens(lengths, num_tokens=len(means)), means, 0.0)
    return segment_sum(means, lengths)


def contrastive_sum(margins: Tensor, *, link: Literal["log_sigmoid", "sigmoid"]) -> Tensor:
    """Sum over pairs of h(mu(y+) - mu(y-)), to be maximised: margins[N] -> scalar.

    Source: (4.4), h the sigmoid (slope at most 1/4, T32); log sigmoid is Bradley-Terry, which does not go flat on pairs
    that are ranked badly wrong.
    """
    return (logsigmoid(margins) if link == "log_sigmoid" else margins.sigmoid()).sum()


def attention_weights(queries: Tensor, keys: Tensor, lengths: Tensor) -> Tensor:
    """w_t = mean_i softmax_t'(q_i . k_t' / sqrt d)_t within each response: queries[T, d], keys[T, d] -> [T].

    At least 0, and 1 in sum over each response (T33). Source: section 4.2, after Preference Transformer: it looks both
    ways, so a token's weight depends on what comes after it, and is known once the response is whole.
    """
    check_cover(lengths, num_tokens=len(queries))
    sizes = lengths.tolist()
    parts = [
        (query @ key.T / key.shape[-1] ** 0.5).softmax(-1).mean(0)
        for query, key in zip(queries.split(sizes), keys.split(sizes), strict=True)
        if len(query)
    ]
    return torch.cat(parts) if parts else queries.new_zeros(0)


def floored(deviations: Tensor, floor: float) -> Tensor:
    """sqrt(s^2 + floor^2): [T] -> [T], at least `floor`.

    Smooth, where a clamp would leave a deviation on the floor without any gradient back.
    """
    return torch.hypot(deviations, torch.full_like(deviations, floor))
