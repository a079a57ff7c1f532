"""Drawing beyond a policy: next-token distributions exactly, and samples that follow them, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rayalign.config.stage_base import SamplingConfig
from rayalign.engines.extrapolate import ExtrapolatedSampler, extrapolated_logprobs, inverse_cdf, nucleus
from rayalign.errors import UserError
from rayalign.ports import ExtrapolateSetup
from rayalign.types import Ragged, Rollout, TokenizedPrompts
from tests.models.tiny import END, VOCABULARY, learner_config, load_plain, model_config, plain_logits, save_tiny

PROMPTS = TokenizedPrompts(Ragged.from_list([[20 + i, *range(30, 30 + 2 * i)] for i in range(5)]), np.arange(5) * 3)
TINY = 1e-30  # a min_prob that forbids nothing


def sampler(policy: str, reference: str, **keys: Any) -> ExtrapolatedSampler:
    """Over two tiny models; `keys` of the setup and of the learner."""
    settings = {"power": 2.0, "min_prob": TINY, "end_token_ids": (END,)} | keys
    learner = learner_config(micro_batch_tokens=settings.pop("micro_batch_tokens", 8192))
    return ExtrapolatedSampler(ExtrapolateSetup(policy, reference, model_config(), learner, **settings))


def draw(worker: ExtrapolatedSampler, prompts: TokenizedPrompts = PROMPTS, *, num: int = 3, **sampling: Any) -> Rollout:
    """Some short responses."""
    return worker.generate(prompts, SamplingConfig(**{"max_new_tokens": 6, **sampling}), num_per_prompt=num, seed=7)


@pytest.fixture(scope="module")
def logits(tied: str, untied: str) -> tuple[torch.Tensor, torch.Tensor]:
    """[L, V] of policy and reference after each token of a sequence, in transformers' own forward."""
    tokens = np.array([20, 5, 9, 17])
    with torch.no_grad():
        return plain_logits(load_plain(untied), tokens), plain_logits(load_plain(tied), tokens)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_power_1_is_the_policy(logits: tuple[torch.Tensor, torch.Tensor], temperature: float) -> None:
    policy, reference = logits
    found = extrapolated_logprobs(policy, reference, power=1.0, min_prob=TINY, temperature=temperature)
    assert torch.allclose(found, (policy.double() / temperature).log_softmax(-1), atol=1e-10)


@pytest.mark.parametrize(("power", "temperature"), [(2.0, 1.0), (3.0, 1.0), (2.0, 0.5), (0.5, 1.0)])
def test_other_powers_are_the_normalised_ratio(
    logits: tuple[torch.Tensor, torch.Tensor], power: float, temperature: float
) -> None:
    """T22, over the next token: policy^k / reference^(k - 1), and 0 is the reference."""
    p, q = (side.double().softmax(-1) for side in logits)
    expected = (p**power / q ** (power - 1)) ** (1 / temperature)
    found = extrapolated_logprobs(*logits, power=power, min_prob=TINY, temperature=temperature).exp()
    assert torch.allclose(found, expected / expected.sum(-1, keepdim=True), atol=1e-12)


def test_what_the_policy_finds_unlikely_is_never_drawn(logits: tuple[torch.Tensor, torch.Tensor]) -> None:
    """At any temperature it is the policy at 1 that decides; where all are unlikely, the likeliest is left."""
    policy, reference = logits
    likely = policy.softmax(-1) >= 0.01
    found = extrapolated_logprobs(policy, reference, power=2.0, min_prob=0.01, temperature=2.0).exp()
    assert ((found > 0) == likely).all() and likely.sum() > len(policy)
    flat = extrapolated_logprobs(torch.zeros(1, 200) + torch.eye(200)[:1], torch.zeros(1, 200), power=2.0, min_prob=0.1,
                                 temperature=1.0)  # fmt: skip
    assert flat.exp()[0].tolist() == pytest.approx([1.0] + [0.0] * 199)


def test_a_reference_that_rules_a_token_out() -> None:
    """Its probability 0 gives all of the mass to the token, and no number that is none."""
    reference = torch.tensor([[0.0, -torch.inf, 0.0]])
    for policy in (torch.zeros(1, 3), torch.tensor([[0.0, -torch.inf, 0.0]])):
        found = extrapolated_logprobs(policy, reference, power=2.0, min_prob=0.01, temperature=1.0).exp()
        assert torch.isfinite(found).all() and found.sum() == pytest.approx(1)


def test_samples_follow_the_distribution(tied: str, untied: str) -> None:
    """First tokens of 4,000 samples against the exact probabilities, by chi-squared."""
    num, prompt = 4000, PROMPTS.take(np.array([2]))
    tokens = next(iter(prompt.tokens))
    with torch.no_grad():
        sides = [plain_logits(load_plain(folder), tokens)[-1].double().softmax(-1) for folder in (untied, tied)]
    expected = (sides[0] ** 2 / sides[1]).numpy() ** (1 / 4)
    expected /= expected.sum()
    rollout = draw(sampler(untied, tied), prompt, num=num, max_new_tokens=1, temperature=4.0)
    firsts = np.array([response[0] for response in rollout.sequences.responses()])
    counts = np.bincount(firsts, minlength=VOCABULARY)
    often = expected * num >= 5
    observed, wanted = counts[often], expected[often] * num
    chi2 = ((observed - wanted) ** 2 / wanted).sum()
    assert often.sum() > 5 and chi2 < often.sum() + 5 * np.sqrt(2 * often.sum())
    assert np.exp(rollout.sampler_logprobs.values) == pytest.approx(expected[firsts], rel=1e-3)


def test_ragged_prompts_give_what_each_gives_alone(tied: str, untied: str) -> None:
    """Prompts of five lengths in one batch, in many, and one by one; log-probs are those of plain forward passes."""
    every = draw(sampler(untied, tied))
    lone = [draw(sampler(untied, tied), PROMPTS.take(np.array([row]))) for row in range(len(PROMPTS))]
    assert len({*every.sequences.prompt_lengths}) == 5
    for other in (draw(sampler(untied, tied, micro_batch_tokens=40)), None):
        parts = [other.sequences] if other else [part.sequences for part in lone]
        responses = [response.tolist() for part in parts for response in part.responses()]
        assert responses == [response.tolist() for response in every.sequences.responses()]
    with torch.no_grad():
        models = [load_plain(folder) for folder in (untied, tied)]
        for tokens, length, told in zip(
            every.sequences.tokens, every.sequences.prompt_lengths, every.sampler_logprobs, strict=True
        ):
            sides = [plain_logits(model, tokens)[length - 1 : -1] for model in models]
            table = extrapolated_logprobs(*sides, power=2.0, min_prob=TINY, temperature=1.0)
            plain = table.gather(-1, torch.from_numpy(tokens[length:])[:, None])[:, 0]
            assert told == pytest.approx(plain.numpy(), abs=2e-3)


def test_rows_ids_and_ends(tied: str, untied: str) -> None:
    """Prompt by prompt; a response ends with its end token or at the limit; a larger num begins with the same ones."""
    ends = tuple(range(1, 60))
    rollout = draw(sampler(untied, tied, end_token_ids=ends))
    sequences = rollout.sequences
    assert sequences.prompt_ids.tolist() == np.repeat(PROMPTS.prompt_ids, 3).tolist()
    assert 0 < sequences.ended.sum() < len(sequences)
    for response, ended, logprobs in zip(sequences.responses(), sequences.ended, rollout.sampler_logprobs, strict=True):
        assert len(logprobs) == len(response) and (len(response) == 6 or ended)
        assert ended == (response[-1] in ends) and not set(response[:-1]) & set(ends)
    fewer = draw(sampler(untied, tied, end_token_ids=ends), num=1).sequences
    assert [r.tolist() for r in fewer.responses()] == [r.tolist() for r in sequences.responses()][::3]
    endless = draw(sampler(untied, tied, end_token_ids=ends), ignore_eos=True).sequences
    assert (endless.response_lengths == 6).all() and not endless.ended.any()


def test_nucleus_and_inverse_cdf() -> None:
    table = torch.tensor([[0.5, 0.0, 0.3, 0.2]], dtype=torch.float64).log()
    assert nucleus(table, 0.6).exp()[0].tolist() == pytest.approx([0.625, 0.0, 0.375, 0.0])
    assert nucleus(table, 0.4).exp()[0].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0])
    numbers = torch.tensor([0.0, 0.4999, 0.5001, 0.7999, 0.8001, np.nextafter(1, 0)], dtype=torch.float64)
    assert inverse_cdf(table.expand(6, -1), numbers).tolist() == [0, 0, 2, 2, 3, 3]
    only = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64).log().expand(2, -1)
    assert inverse_cdf(only, torch.tensor([0.0, np.nextafter(1, 0)], dtype=torch.float64)).tolist() == [1, 1]


def test_a_reference_of_other_tokens(untied: str, tmp_path: Path) -> None:
    other = save_tiny(tmp_path / "other", vocab_size=VOCABULARY + 8)
    with pytest.raises(UserError, match=f"other: knows {VOCABULARY + 8} tokens, and the policy .* {VOCABULARY}; ") as error:
        sampler(untied, other)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("architecture", [{"model_type": "gpt2", "n_positions": 64}, {"model_type": "qwen2"}])
def test_other_families_ragged(architecture: dict[str, Any], tmp_path: Path) -> None:
    """Learned positions, and biases: a prompt that is padded gives what it gives alone."""
    folders = [save_tiny(tmp_path / str(seed), seed=seed, **architecture) for seed in (0, 1)]
    every = draw(sampler(*folders), num=2)
    alone = [draw(sampler(*folders), PROMPTS.take(np.array([row])), num=2) for row in range(len(PROMPTS))]
    assert [r.tolist() for r in every.sequences.responses()] == [
        r.tolist() for part in alone for r in part.sequences.responses()
    ]
