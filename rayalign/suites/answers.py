"""Answers of a saved policy, drawn by vLLM in this process from the very tokens that training makes of a prompt."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, Field

from rayalign.config.base import Number
from rayalign.config.model import ModelConfig
from rayalign.config.stage_base import SamplingConfig
from rayalign.data.tally import Tally
from rayalign.data.template import Template, load_tokenizer
from rayalign.data.tokenize import tokenize_prompts
from rayalign.errors import UserError
from rayalign.ports import SamplerSetup
from rayalign.serving.places import find_policy, max_length_of, settings_of
from rayalign.serving.saved import num_threads, pin_threads
from rayalign.suites.options import ModelOptions
from rayalign.types import Conversation, Message, TokenizedPrompts

MAX_LENGTH = 8192  # tokens of prompt and answer, unless more is asked for: the cache has to hold them
COLDEST = 0.01  # vLLM takes colder temperatures for this one without a word; 0 is the likeliest token

Asked = str | Sequence[Mapping[str, str]]  # a prompt, or messages {role, content} that end with the user's


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: its text without the end token, its tokens with it, and the sampler's log-prob of each token [T]."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool  # False where it was cut at max_new_tokens
    num_prompt_tokens: int


def _not_between(temperature: float) -> float:
    if 0 < temperature < COLDEST:
        raise ValueError(f"0 (the likeliest token), or at least {COLDEST}")
    return temperature


class _AnswerSampling(SamplingConfig):
    """Sampling as in training, and also the likeliest token alone (temperature 0), which no policy gradient may see."""

    temperature: Annotated[Number, Field(ge=0, le=100), AfterValidator(_not_between)] = 1.0


class Answerer:
    """A policy that answers; one engine of vLLM lives until `close`, or the end of a `with`.

    Args:
        place: a run's folder with one policy, RUN/STAGE/policy, or a Hugging Face language model's folder.

    `tally` counts the prompts asked and those cut on the left because they were too long. Raises UserError for a place
    without a policy, a folder without a tokenizer, and a model that vLLM cannot load.
    """

    def __init__(self, place: Path, options: ModelOptions | None = None) -> None:
        from rayalign.engines.vllm_backend.sampler import VllmSampler

        options = options or ModelOptions()
        self.folder = find_policy(place)
        settings = settings_of(self.folder)
        self.template = Template(
            load_tokenizer(self.folder, trust_remote_code=options.trust_remote_code), options.chat_template
        )
        readable = max_length_of(settings)
        self.max_length = min(readable, options.max_length or MAX_LENGTH)
        self._mend = f"lower --max-new-tokens, or raise --max-length (to {readable} at most)"
        if self.max_length == readable:
            self._mend = f"set --max-new-tokens below {readable}"
        self.tally = Tally()
        pin_threads(options.threads)
        self._sampler = VllmSampler(self._setup(settings, options))

    def _setup(self, settings: dict[str, Any], options: ModelOptions) -> SamplerSetup:
        kept = settings.get("dtype") or settings.get("torch_dtype")
        return SamplerSetup(
            path=str(self.folder),
            tokenizer=str(self.folder),
            chat_template=options.chat_template,
            model=ModelConfig(
                path=str(self.folder),
                dtype="bfloat16" if kept in ("bfloat16", "float16") else "float32",
                max_length=self.max_length,
                trust_remote_code=options.trust_remote_code,
            ),
            end_token_ids=self.template.end_token_ids,
            threads=num_threads(options.threads),
            seed=0,  # each request has its own
            tensor_parallel=options.tensor_parallel,
            gpu_memory_frac=options.gpu_memory_frac,
            kv_cache_gib=options.kv_cache_gib,
        )

    def answer(
        self,
        conversations: Sequence[Asked],
        *,
        num: int = 1,
        temperature: float = 1.0,
        max_new_tokens: int = 1024,
        seed: int = 0,
        ids: Sequence[int] | None = None,
    ) -> list[list[Answer]]:
        """`num` answers to each of B conversations, in their order.

        An answer depends on the weights, the conversation, `seed` and the conversation's number in `ids` (0 to B-1 if
        unset), not on what else is asked. A prompt that leaves no room for `max_new_tokens` is cut on the left.
        Temperature 0 takes the likeliest token, and gives equal answers if `num` is above 1. Raises UserError for a bad
        argument, DataError for a conversation that the chat template does not take.
        """
        if not conversations:
            return []
        if not 0 < max_new_tokens < self.max_length:
            raise UserError(
                f"answers of {max_new_tokens} tokens leave no room for a prompt: {self.folder} reads {self.max_length}; "
                f"{self._mend}"
            )
        drawn = num if temperature > 0 else 1
        sampling = _sampling(temperature, max_new_tokens)
        rollout = self._sampler.generate(
            self._prompts(conversations, ids, max_new_tokens), sampling, num_per_prompt=drawn, seed=seed
        )
        sequences = rollout.sequences
        answers = [
            Answer(
                text=self.template.decode_response(response),
                tokens=tuple(response.tolist()),
                logprobs=tuple(logprobs.tolist()),
                ended=bool(ended),
                num_prompt_tokens=int(num_prompt),
            )
            for response, logprobs, ended, num_prompt in zip(
                sequences.responses(), rollout.sampler_logprobs, sequences.ended, sequences.prompt_lengths, strict=True
            )
        ]
        return [answers[row : row + drawn] * (num // drawn) for row in range(0, len(answers), drawn)]

    def _prompts(
        self, conversations: Sequence[Asked], ids: Sequence[int] | None, max_new_tokens: int
    ) -> TokenizedPrompts:
        tally = self.tally.part()
        prompts = tokenize_prompts(
            [conversation_of(asked) for asked in conversations],
            self.template,
            max_length=self.max_length,
            room=max_new_tokens,
            overlong="truncate",
            tally=tally,
        )
        self.tally.num_used += tally.num_used
        return prompts if ids is None else TokenizedPrompts(prompts.tokens, np.asarray(ids, dtype=np.int64))

    def close(self) -> None:
        """Ends the engine and frees its memory, so that another may start."""
        import torch

        self._sampler.close()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # the next engine counts what is free

    def __enter__(self) -> Answerer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def conversation_of(asked: Asked) -> Conversation:
    """A prompt or messages as the template takes them. Raises UserError for what is neither."""
    if isinstance(asked, str):
        return (Message("user", asked),)
    try:
        return tuple(Message(str(message["role"]), str(message["content"])) for message in asked)
    except (KeyError, TypeError):
        told = json.dumps(asked, default=str)[:200]
        raise UserError(f"{told}: no conversation; give a text, or a list of {{role, content}}") from None


def _sampling(temperature: float, max_new_tokens: int) -> SamplingConfig:
    try:
        return _AnswerSampling(temperature=temperature, max_new_tokens=max_new_tokens)
    except ValueError:
        raise UserError(f"temperature {temperature:g}: give 0, or {COLDEST} to 100") from None
