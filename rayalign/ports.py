"""Protocols: what a rollout, reward or policy worker must be able to do, and how the groups are called.

A class that satisfies one of the worker Protocols can stand in for the built-in one (see `rayalign.api`). Shapes are
those of `rayalign.types`; seconds and counts come back as metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from rayalign.config.fits import FitRewardStage
from rayalign.config.improve import PolicyStepConfig
from rayalign.config.loops import ImplicitStage
from rayalign.config.model import LearnerConfig, ModelConfig, OptimizerConfig
from rayalign.config.reward import RewardConfig
from rayalign.config.service import RewardServiceConfig
from rayalign.config.stage_base import SamplingConfig
from rayalign.types import Rollout, Scores, Sequences, Stored, TokenizedPrompts, WeightReport

W = TypeVar("W", covariant=True)
R = TypeVar("R")
Metrics = Mapping[str, Any]  # of rayalign.telemetry.metrics
# A user's own objective, tensors in, a sum out: (demo_scores[N], agent_scores[N]) of an explicit reward, or
# beta log(policy / reference) of both sides [N] of an implicit one -> scalar sum over pairs.
PairLossFn = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class SamplerSetup:
    """What a rollout worker is built from."""

    path: str  # folder or hub name of the first weights
    tokenizer: str  # folder or hub name
    chat_template: str | None
    model: ModelConfig
    end_token_ids: tuple[int, ...]
    threads: int
    seed: int
    weight_transfer: str = "local"  # nccl, ipc, gloo; local within one process
    tensor_parallel: int = 1
    gpu_memory_frac: float = 0.85
    kv_cache_gib: float = 0.5
    sleep_mode: bool = False


@dataclass(frozen=True)
class PolicySetup:
    """What a policy worker is built from."""

    path: str
    model: ModelConfig
    learner: LearnerConfig
    config: PolicyStepConfig
    temperature: float  # the sampler's; log-probs are those of the tempered distribution
    total_steps: int  # optimiser steps until the schedule ends
    max_staleness: int
    seed: int
    critic_steps: int = 1  # until the critic's schedule ends


@dataclass(frozen=True)
class ImplicitSetup:
    """What a policy worker that learns from its implicit reward is built from."""

    path: str
    model: ModelConfig
    learner: LearnerConfig
    config: ImplicitStage
    seed: int
    demonstrations: Sequences | None = None
    negatives: list[Sequences] = field(default_factory=list)  # stored samples beside the policy's own
    preferences: tuple[Sequences, Sequences] | None = None  # (better, worse), row i of both a pair
    loss: PairLossFn | None = None  # one of the user's own, in the place of demonstrations.loss


@dataclass(frozen=True)
class RewardSetup:
    """What a reward worker is built from."""

    path: str
    tokenizer: str
    chat_template: str | None
    model: ModelConfig
    learner: LearnerConfig
    config: RewardConfig
    rounds: int
    seed: int
    demonstrations: Sequences | None  # row i answers the prompt with id prompt_ids[i]
    negatives: list[Sequences] = field(default_factory=list)  # stored samples beside the policy's own
    preferences: tuple[Sequences, Sequences] | None = None  # (chosen, rejected), row i of both a pair
    loss: PairLossFn | None = None  # one of the user's own, in the place of config.loss


@dataclass(frozen=True)
class SftSetup:
    """What a rank of supervised fine-tuning is built from."""

    path: str | None
    scratch: dict[str, Any] | None
    model: ModelConfig
    learner: LearnerConfig
    optimizer: OptimizerConfig
    total_steps: int
    seed: int


@dataclass(frozen=True)
class FitSetup:
    """What a rank that fits a sequence reward to stored pairs is built from."""

    path: str
    model: ModelConfig
    learner: LearnerConfig
    config: FitRewardStage
    total_steps: int
    seed: int
    loss: PairLossFn | None = None


@dataclass(frozen=True)
class ScorerSetup:
    """What a worker that only scores is built from."""

    path: str
    model: ModelConfig
    learner: LearnerConfig
    token_rewards: bool = False  # scores come with those of single tokens


@dataclass(frozen=True)
class ServiceSetup:
    """What a worker that asks a reward behind HTTP is built from."""

    url: str
    service: RewardServiceConfig
    tokenizer: str
    chat_template: str | None
    trust_remote_code: bool = False  # of the tokenizer


@dataclass(frozen=True)
class ExtrapolateSetup:
    """What a worker that samples beyond a policy, away from its reference, is built from."""

    policy: str
    reference: str
    model: ModelConfig
    learner: LearnerConfig
    power: float
    min_prob: float
    end_token_ids: tuple[int, ...]


@dataclass(frozen=True)
class TransferSetup:
    """How the policy group's weights reach the rollout group."""

    backend: str  # nccl, ipc, gloo, local
    address: str
    port: int
    num_receivers: int  # vLLM workers over all replicas
    deadline_s: float


class WeightClient(Protocol):
    """The rollout group as the sender of weights sees it; vLLM's own protocol, with deadlines behind it."""

    version: int

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """All replicas join the transfer group."""

    def start_weight_update(self) -> None:
        """All replicas open a sync."""

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """All replicas receive."""

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """All replicas close the sync, with `version`."""


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

    def sleep(self) -> None:
        """Frees the GPU, keeping the weights in host memory; called only where groups are colocated."""

    def wake_up(self) -> None:
        """Takes the GPU back, with the weights."""


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

    def start_critic(self, path: str) -> None:
        """Starts the critic of PPO anew from a reward's folder, or another model's."""

    def improve(self, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Metrics:
        """One update; `version` advances by one."""

    def mismatch(self, rollouts: Sequence[Rollout]) -> Metrics:
        """How far log-probs are from the sampler's."""

    def negative_log_likelihood(self, sequences: Sequences) -> Metrics:
        """Nats a demonstration under the policy."""

    def move_reference(self) -> None:
        """Makes the present policy the reference."""

    def connect(self, client: WeightClient, transfer: TransferSetup) -> None:
        """Joins the samplers; every rank calls it, rank 0 sends."""

    def sync(self) -> WeightReport:
        """Sends the present weights to the samplers; every rank calls it."""

    def weights(self) -> Iterator[tuple[str, Any]]:
        """(name, full tensor) pairs; every rank iterates."""

    def save(self, folder: str) -> None:
        """Writes the policy as a Hugging Face folder."""


@runtime_checkable
class Resumable(Protocol):
    """What a worker adds for its stage to have checkpoints; `engines.checkpointed.Checkpointed` has it in parts."""

    def save_state(self, folder: str) -> None:
        """Copies all that a resumption needs, and begins to write it below FOLDER/state."""

    def state_files(self, wait: bool) -> dict[str, tuple[int, str]] | None:
        """{path below FOLDER: (bytes, SHA-256)} of what was written; None while that goes on."""

    def load_state(self, folder: str) -> None:
        """Goes on from what was saved there."""


class Pending(Protocol[R]):
    """Calls under way on the workers of a group."""

    def result(self) -> list[R]:
        """One value a worker, in worker order. Raises CallFailed when one failed; WorkerLost when it died or is late."""

    def survivors(self) -> list[R | None]:
        """After WorkerLost: one value a worker, None where there will be none."""


class Workers(Protocol[W]):
    """The workers of one group, in this process or as Ray actors; both are called alike."""

    role: str
    busy_s: float  # seconds of work, averaged over workers, since the start

    def __len__(self) -> int:
        """How many there are."""

    def submit(
        self,
        method: Callable[..., R],
        arguments: Sequence[tuple[Any, ...]],
        *,
        phase: str,
        only: Sequence[int] | None = None,
    ) -> Pending[R]:
        """Calls `method(worker, *arguments[i])` on worker i, or on worker only[i].

        Stored values among the arguments arrive as themselves.
        """

    def replace(self, workers: Sequence[int]) -> None:
        """Builds new workers in the places of these, which are dead or hang; they begin as at the start."""

    def fetch(self, stored: Stored[R]) -> R:
        """Brings a stored value to the caller."""

    def close(self) -> None:
        """Ends the workers."""


class Fleet(Protocol):
    """Where groups come from: Ray actors in placement groups, or plain objects in this process."""

    def num_workers(self, role: str) -> int:
        """How many workers a group will have."""

    @property
    def weight_transfer(self) -> str:
        """vLLM's transfer backend: nccl, ipc, gloo, or local within one process."""

    def threads(self, role: str) -> int:
        """How many threads each of them has."""

    def start(self, role: str, factory: Callable[[Any], Any], setups: Sequence[Any]) -> Workers[Any]:
        """Starts a group and builds worker i from setups[i]."""

    def connect(self, policy: Any, rollout: Any) -> None:
        """Prepares weight transfer from a policy group to a rollout group."""

    def close(self) -> None:
        """Ends what was started here."""

    def run_ranks(
        self, loop: Callable[[Any, Callable[[Any], None]], None], setup: Any, on_report: Callable[[Any], None]
    ) -> None:
        """Runs `loop(setup, report)` on every rank of the policy's resources until it returns; rank 0 reports."""
