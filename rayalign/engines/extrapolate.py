"""Sampling beyond a policy, away from its reference, with no reward and no training: two models, token by token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from rayalign.config.stage_base import SamplingConfig
from rayalign.data.ragged import micro_batches
from rayalign.engines.learner import local_device
from rayalign.errors import UserError
from rayalign.models.policy import PolicyModel
from rayalign.ports import ExtrapolateSetup
from rayalign.types import Ragged, Rollout, Sequences, TokenizedPrompts

Drawn = tuple[list[int], list[float], bool]  # a response's tokens, their log-probs, whether it ended


def extrapolated_logprobs(
    policy_logits: torch.Tensor, reference_logits: torch.Tensor, *, power: float, min_prob: float, temperature: float
) -> torch.Tensor:
    """log of policy^(power/T) / reference^((power - 1)/T), normalised over the next token: [..., V] x2 -> [..., V].

    Source: AfD's closed form (paper 2, section 2.3; T22): KL-regularised RL with r = log policy/reference, from the
    reference at beta, ends at reference (policy/reference)^(1/beta); `power` is 1/beta, and 1 gives back the policy.

    Departures: T22 normalises over whole responses, this over each next token, so that it can be drawn from; the two
    agree where the response has one token, or power is 1. Tokens that the policy itself (at temperature 1) finds less
    likely than `min_prob` have no probability, the likeliest excepted: the ratio of two small numbers says nothing.
    """
    log_policy = policy_logits.double().log_softmax(-1)
    log_reference = reference_logits.double().log_softmax(-1)
    rare = log_policy < np.log(min_prob)
    rare &= log_policy < log_policy.amax(-1, keepdim=True)
    # Where both are 0 the difference would be no number; where the reference alone is, it would be infinite.
    log_reference = log_reference.clamp(min=torch.finfo(torch.float32).min)
    tilted = (power * log_policy - (power - 1) * log_reference).masked_fill(rare, -torch.inf)
    return (tilted / temperature).log_softmax(-1)


class ExtrapolatedSampler:
    """Draws as a rollout worker does, with transformers and a KV cache instead of vLLM, which runs one model at a time.

    Raises UserError for two models that do not know the same tokens.
    """

    def __init__(self, setup: ExtrapolateSetup) -> None:
        self._setup, self._device = setup, torch.device(local_device())
        self._policy, self._reference = (
            PolicyModel.load(path, setup.model, setup.learner, trainable=False).lm.to(self._device)
            for path in (setup.policy, setup.reference)
        )
        known = [lm.get_output_embeddings().weight.shape[0] for lm in (self._policy, self._reference)]
        if known[0] != known[1]:
            raise UserError(
                f"{setup.reference}: knows {known[1]} tokens, and the policy {setup.policy} {known[0]}; the two are "
                "compared token by token: name the model that the policy was trained from"
            )

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """Draws `num_per_prompt` responses for each prompt, rows prompt by prompt; log-probs are those it drew with.

        A prompt's random numbers come from `seed` and its prompt id alone.
        """
        started = time.perf_counter()
        rows = np.repeat(np.arange(len(prompts)), num_per_prompt)
        numbers = np.concatenate([_numbers(seed, i, num_per_prompt, sampling) for i in prompts.prompt_ids])
        every = prompts.take(rows)
        drawn: dict[int, Drawn] = {}
        for chosen in micro_batches(
            every.tokens.lengths + sampling.max_new_tokens,
            max_tokens=self._setup.learner.micro_batch_tokens,
            packing=False,
        ):
            found = self._draw(list(every.tokens.take(chosen)), numbers[chosen], sampling)
            drawn |= dict(zip(chosen.tolist(), found, strict=True))
        responses, logprobs, ended = zip(*(drawn[row] for row in range(len(rows))), strict=True)
        tokens = [np.concatenate([prompt, response]) for prompt, response in zip(every.tokens, responses, strict=True)]
        return Rollout(
            Sequences(Ragged.from_list(tokens), every.tokens.lengths, every.prompt_ids, np.array(ended, dtype=bool)),
            Ragged.from_list(logprobs, np.float32),
            policy_version=0,
            generate_s=time.perf_counter() - started,
        )

    def close(self) -> None:
        """Gives the memory back."""
        del self._policy, self._reference

    @torch.no_grad()
    def _draw(self, prompts: list[np.ndarray], numbers: np.ndarray, sampling: SamplingConfig) -> list[Drawn]:
        """Responses to R prompts of any lengths; `numbers` [R, max_new_tokens] in [0, 1) decide them."""
        ends = torch.tensor([] if sampling.ignore_eos else self._setup.end_token_ids, device=self._device)
        uniform = torch.from_numpy(numbers).to(self._device)
        lengths = torch.zeros(len(prompts), dtype=torch.int64, device=self._device)
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self._device)
        tokens, logprobs = [], []
        states = _Decoding(self._policy, self._reference, prompts, self._device)
        for step in range(sampling.max_new_tokens):
            table = extrapolated_logprobs(
                *states.logits(),
                power=self._setup.power,
                min_prob=self._setup.min_prob,
                temperature=sampling.temperature,
            )
            table = nucleus(table, sampling.top_p)
            token = inverse_cdf(table, uniform[:, step])
            tokens.append(token)
            logprobs.append(table.gather(-1, token[:, None])[:, 0])
            lengths += ~ended
            ended |= torch.isin(token, ends)
            if bool(ended.all()):
                break
            states.append(token)
        columns = zip(torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist(), strict=True)
        ends_at = zip(lengths.tolist(), ended.tolist(), strict=True)
        return [(row[:n], values[:n], end) for (row, values), (n, end) in zip(columns, ends_at, strict=True)]


class _Decoding:
    """Two models that read the same tokens. Prompts stand on the right, so that all next tokens are the last column.

    What is left of a shorter prompt is hidden by the mask, which comes from lengths, and its positions begin at 0.
    """

    def __init__(self, policy: Any, reference: Any, prompts: list[np.ndarray], device: torch.device) -> None:
        width = max(len(prompt) for prompt in prompts)
        ids = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = prompt
            mask[row, width - len(prompt) :] = 1
        self._models = [policy, reference]
        self._caches: list[Any] = [None, None]
        self._ids, self._mask = (torch.from_numpy(array).to(device) for array in (ids, mask))
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._ragged = len({len(prompt) for prompt in prompts}) > 1

    def logits(self) -> Iterator[torch.Tensor]:
        """[R, V] for the next token, of the policy and then of the reference."""
        # Where all prompts are of one length nothing is padded, and any family of models will do.
        padded = {"position_ids": self._positions, "attention_mask": self._mask} if self._ragged else {}
        for place, model in enumerate(self._models):
            output = model(
                input_ids=self._ids,
                **padded,
                past_key_values=self._caches[place],
                use_cache=True,
                logits_to_keep=1,
            )
            self._caches[place] = output.past_key_values
            yield output.logits[:, -1]

    def append(self, tokens: torch.Tensor) -> None:
        """[R] tokens that were drawn."""
        self._ids = tokens[:, None]
        self._positions = self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, torch.ones_like(self._ids)], dim=1)


def nucleus(logprobs: torch.Tensor, top_p: float) -> torch.Tensor:
    """The smallest set of likeliest tokens that holds `top_p`, renormalised: [..., V] -> [..., V]."""
    if top_p >= 1:
        return logprobs
    sorted_logprobs, order = logprobs.sort(-1, descending=True)
    before = sorted_logprobs.exp().cumsum(-1) - sorted_logprobs.exp()
    outside = torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logprobs.masked_fill(outside, -torch.inf).log_softmax(-1)


def inverse_cdf(logprobs: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """The token at which the cumulated probability first exceeds a number in [0, 1): [R, V], [R] -> [R]."""
    cumulated = logprobs.exp().cumsum(-1)
    # Scaled by the sum, which rounding keeps from 1, so that no number lies behind the last token.
    place = torch.searchsorted(cumulated, (uniform * cumulated[:, -1])[:, None], right=True)[:, 0]
    last = (cumulated < cumulated[:, -1:]).sum(-1)  # the last token that has a probability
    return torch.minimum(place, last)


def _numbers(seed: int, prompt_id: int, num: int, sampling: SamplingConfig) -> np.ndarray:
    """[num, max_new_tokens] in [0, 1). A larger num begins with the same rows."""
    random = np.random.default_rng(np.random.SeedSequence([seed, int(prompt_id)]))
    return random.random((num, sampling.max_new_tokens))
