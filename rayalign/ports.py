"""Protocols: what a rollout, reward or policy worker must be able to do, and how the groups are called.

A class that satisfies one of the worker Protocols can stand in for the built-in one (see `rayalign.api`). Shapes are
those of `rayalign.types`; seconds and counts come back as metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from rayalign.config.stages import SamplingConfig
from rayalign.types import Rollout, Scores, Sequences, TokenizedPrompts, WeightReport

W = TypeVar("W")
R = TypeVar("R")
Metrics = Mapping[str, Any]  # of rayalign.telemetry.metrics


@runtime_checkable
class RolloutWorker(Protocol):
    """Draws samples from the policy, and takes new weights: one vLLM engine, or a user's own environment around one."""

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> Rollout:
        """`num_per_prompt` responses for each prompt, rows in the order of the prompts."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Joins the trainer's transfer group."""

    def start_weight_update(self) -> None:
        """Opens a weight sync."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receives weights."""

    def finish_weight_update(self, version: int) -> None:
        """Closes a weight sync; samples carry `version` from now on."""

    def weight_report(self) -> WeightReport:
        """Version and checksum of what is held."""

    def load_checkpoint(self, path: str, *, version: int) -> None:
        """Takes the weights of a folder."""


@runtime_checkable
class RewardWorker(Protocol):
    """Learns a reward and scores with it. A fixed reward learns nothing: its `update` returns no metrics."""

    def update(self, rollouts: Sequence[Rollout]) -> Metrics:
        """One round of reward learning against these samples."""

    def score(self, rollouts: Sequence[Rollout]) -> Scores:
        """Scores of this worker's share of the samples."""

    def score_sequences(self, sequences: Sequences) -> Scores:
        """Scores of this worker's share of stored sequences."""

    def save(self, folder: str) -> None:
        """Writes what was learned."""


@runtime_checkable
class PolicyWorker(Protocol):
    """Improves the policy on scored samples and hands its weights on."""

    version: int

    def improve(self, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Metrics:
        """One update; `version` advances by one."""

    def mismatch(self, rollouts: Sequence[Rollout]) -> Metrics:
        """How far log-probs are from the sampler's."""

    def negative_log_likelihood(self, sequences: Sequences) -> Metrics:
        """Nats a demonstration under the policy."""

    def move_reference(self) -> None:
        """Makes the present policy the reference."""

    def weights(self) -> Iterator[tuple[str, Any]]:
        """(name, full tensor) pairs for the samplers; every rank iterates."""

    def save(self, folder: str) -> None:
        """Writes the policy as a Hugging Face folder."""


class Pending(Protocol[R]):
    """Calls under way on the workers of a group."""

    def result(self) -> list[R]:
        """One value a worker, in worker order. Raises CallFailed when one failed, died or passed its deadline."""


class Workers(Protocol[W]):
    """The workers of one group, in this process or as Ray actors; both are called alike."""

    role: str

    def __len__(self) -> int:
        """How many there are."""

    def submit(self, method: Callable[..., R], arguments: Sequence[tuple[Any, ...]], *, phase: str) -> Pending[R]:
        """Calls `method(worker, *arguments[i])` on worker i. Stored values among the arguments arrive as themselves."""

    def close(self) -> None:
        """Ends the workers."""
