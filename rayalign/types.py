"""The vocabulary that travels between the groups: ragged tokens, rollouts and scores, each with its version.

Shapes: B sequences, T tokens, N pairs. Everything here is numpy, so that it crosses Ray's object store without a
copy and the controller needs neither torch nor ray to speak of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is "system", "user" or "assistant"."""

    role: str
    content: str


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What an expert answered to a prompt."""

    prompt: Conversation
    response: str


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one prompt, `chosen` preferred to `rejected`."""

    prompt: Conversation
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Ragged:
    """B sequences of different lengths, stored end to end and never padded.

    Example: `Ragged.from_list([[5, 6], [7]])` has values [5, 6, 7] and lengths [2, 1].
    """

    values: np.ndarray  # [T]
    lengths: np.ndarray  # [B] int64; sums to T

    def __post_init__(self) -> None:
        if int(self.lengths.sum()) != len(self.values):
            raise ValueError(f"lengths sum to {int(self.lengths.sum())}, values have {len(self.values)}")

    @classmethod
    def from_list(cls, rows: Iterable[Sequence[Any]], dtype: Any = np.int64) -> Ragged:
        """Builds from a list of lists (or of 1-D arrays)."""
        arrays = [np.asarray(row, dtype=dtype) for row in rows]
        lengths = np.array([len(a) for a in arrays], dtype=np.int64)
        return cls(np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype), lengths)

    @classmethod
    def concatenate(cls, parts: Sequence[Ragged]) -> Ragged:
        """All rows of all parts, in order."""
        return cls(np.concatenate([p.values for p in parts]), np.concatenate([p.lengths for p in parts]))

    @property
    def starts(self) -> np.ndarray:
        """Where each row begins in `values`: [B] int64."""
        return np.concatenate([[0], np.cumsum(self.lengths)[:-1]]).astype(np.int64) if len(self) else self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, length in zip(self.starts, self.lengths, strict=True):
            yield self.values[start : start + length]

    def take(self, rows: np.ndarray) -> Ragged:
        """The chosen rows, in the order given."""
        starts = self.starts
        picked = [self.values[starts[r] : starts[r] + self.lengths[r]] for r in rows]
        return Ragged(np.concatenate(picked) if picked else self.values[:0], self.lengths[rows])


@dataclass(frozen=True, slots=True)
class TokenizedPrompts:
    """Prompts ready for generation: exactly the tokens that training sees before the response."""

    tokens: Ragged  # [B] rows of token ids
    prompt_ids: np.ndarray  # [B] int64: the row of the prompt in its data, shared by all its samples

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: np.ndarray) -> TokenizedPrompts:
        """The chosen prompts, in the order given."""
        return TokenizedPrompts(self.tokens.take(rows), self.prompt_ids[rows])


@dataclass(frozen=True, slots=True)
class Sequences:
    """B prompts, each followed by its response; the response ends with the end token if it ended by itself."""

    tokens: Ragged  # [B] rows: prompt then response
    prompt_lengths: np.ndarray  # [B] int64
    prompt_ids: np.ndarray  # [B] int64: rows with the same id answer the same prompt
    ended: np.ndarray  # [B] bool: False where the response was cut at the length limit

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def response_lengths(self) -> np.ndarray:
        """[B] int64, the end token included."""
        return self.tokens.lengths - self.prompt_lengths

    @property
    def num_response_tokens(self) -> int:
        return int(self.response_lengths.sum())

    def take(self, rows: np.ndarray) -> Sequences:
        """The chosen rows, in the order given."""
        return Sequences(self.tokens.take(rows), self.prompt_lengths[rows], self.prompt_ids[rows], self.ended[rows])

    def responses(self) -> Iterator[np.ndarray]:
        """The response tokens of each row."""
        for row, prompt_length in zip(self.tokens, self.prompt_lengths, strict=True):
            yield row[prompt_length:]

    def prompts(self) -> Iterator[np.ndarray]:
        """The prompt tokens of each row."""
        for row, prompt_length in zip(self.tokens, self.prompt_lengths, strict=True):
            yield row[:prompt_length]

    @classmethod
    def concatenate(cls, parts: Sequence[Sequences]) -> Sequences:
        """All rows of all parts, in order."""
        return cls(
            Ragged.concatenate([p.tokens for p in parts]),
            np.concatenate([p.prompt_lengths for p in parts]),
            np.concatenate([p.prompt_ids for p in parts]),
            np.concatenate([p.ended for p in parts]),
        )


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one sampler drew, with the weights' version that drew it."""

    sequences: Sequences
    sampler_logprobs: Ragged  # [B] rows of float32, one per response token
    policy_version: int
    generate_s: float = 0.0  # seconds the engine spent

    def __len__(self) -> int:
        return len(self.sequences)


@dataclass(frozen=True, slots=True)
class Scores:
    """Rewards of the sequences at `rows` of a batch, and the reward model's version that gave them."""

    rows: np.ndarray  # [b] int64: places in the concatenation of the scored rollouts
    values: np.ndarray  # [b] float32, normalised as configured
    reward_version: int
    token_values: Ragged | None = None  # [b] rows of float32 that sum to `values`: where the reward is dense

    def in_order(self) -> np.ndarray:
        """[b] values by row, of scores of a whole batch."""
        ordered = np.empty_like(self.values)
        ordered[self.rows] = self.values
        return ordered


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """What the controller learns of a stored rollout; the tokens stay in the object store."""

    num_sequences: int
    num_prompt_tokens: int
    num_response_tokens: int
    num_ended: int
    policy_version: int
    generate_s: float

    @classmethod
    def of(cls, rollout: Rollout) -> RolloutSummary:
        """Counts of one rollout."""
        sequences = rollout.sequences
        return cls(
            num_sequences=len(sequences),
            num_prompt_tokens=int(sequences.prompt_lengths.sum()),
            num_response_tokens=sequences.num_response_tokens,
            num_ended=int(sequences.ended.sum()),
            policy_version=rollout.policy_version,
            generate_s=rollout.generate_s,
        )


@dataclass(frozen=True, slots=True)
class Stored(Generic[T]):
    """A value that stays where it was made. `ref` is a Ray object reference, or the value itself in process."""

    ref: Any
    summary: Any = None


@dataclass(frozen=True, slots=True)
class WeightReport:
    """What a sampler holds after a sync; replicas must agree, and it must change when the policy did."""

    version: int
    digest: str
