"""A causal LM under training: what every way of learning a policy shares. Log-probs, reference, weights, saving.

Every rank is given the whole batch (tokens are small, and shared through the object store) and takes its share of the
forward passes; what is computed from the whole batch is computed on every rank alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rayalign.config.model import LearnerConfig, ModelConfig, OptimizerConfig
from rayalign.engines.checkpointed import (
    Checkpointed,
    frozen_tensors,
    joined,
    load_frozen,
    random_state,
    restore_random_state,
)
from rayalign.engines.learner import (
    Learner,
    frozen_reference,
    init_distributed,
    local_device,
    seed_everything,
)
from rayalign.engines.policy_loss import mismatch_metrics
from rayalign.engines.scored_batch import token_places
from rayalign.errors import RayalignError
from rayalign.models.policy import PolicyModel
from rayalign.ports import TransferSetup, WeightClient
from rayalign.storage.checkpoints import STATE
from rayalign.storage.snapshot import Snapshot, read_tensors, read_values
from rayalign.telemetry.metrics import Mean, Metrics
from rayalign.types import Ragged, Rollout, Sequences, WeightReport

if TYPE_CHECKING:
    from rayalign.engines.vllm_backend.sender import WeightSender


class TrainablePolicy(Checkpointed):
    """One rank of a policy group: DeepSpeed learner, a frozen reference if there is to be one, weights for the samplers.

    Args:
        temperature: the sampler's; log-probs are those of the tempered distribution.
        keeps_reference: loads a frozen copy beside the policy. With LoRA the model without its adapter serves.
    """

    def __init__(
        self,
        path: str,
        model: ModelConfig,
        learner: LearnerConfig,
        optimizer: OptimizerConfig,
        *,
        temperature: float,
        total_steps: int,
        seed: int,
        keeps_reference: bool,
    ) -> None:
        init_distributed()
        seed_everything(seed)
        self.version = 0
        self._temperature, self._learner_config = temperature, learner
        self._reference_moved = False
        self._sender: WeightSender | None = None
        device = local_device()
        self._policy = PolicyModel.load(path, model, learner).to(device)
        self._learner = Learner(self._policy, optimizer, learner, total_steps=total_steps, device=device)
        self._reference: Any = None
        if keeps_reference and not self._policy.has_adapter:
            frozen = PolicyModel.load(path, model, learner, trainable=False).to(device)
            self._reference = frozen_reference(frozen, learner)

    def mismatch(self, rollouts: Sequence[Rollout]) -> Metrics:
        """How far this policy's log-probs are from the sampler's on its samples, in nats a token."""
        sequences = Sequences.concatenate([r.sequences for r in rollouts])
        sampler = Ragged.concatenate([r.sampler_logprobs for r in rollouts])
        return mismatch_metrics(self._logprobs(sequences), torch.from_numpy(sampler.values))

    def negative_log_likelihood(self, sequences: Sequences) -> Metrics:
        """Nats a response of demonstrations under the policy, and nats a token."""
        logprobs = self._gathered_logprobs(sequences, lambda engine, batch: engine(batch)[0])
        total = -float(logprobs.sum())
        return {"nll_sequence": Mean(total, len(sequences)), "nll_token": Mean(total, logprobs.numel())}

    def move_reference(self) -> None:
        """Makes the present policy the reference (a moving reference). Not for LoRA, whose base is the reference."""
        if self._policy.has_adapter:
            raise RayalignError("a LoRA run's reference is its base model; use reference: start")
        if self._reference is None:
            return
        with torch.no_grad():
            for frozen, current in zip(self._plain_reference.parameters(), self._policy.parameters(), strict=True):
                # Under ZeRO-3 both are sharded alike, and each rank copies its shard.
                source, target = getattr(current, "ds_tensor", current), getattr(frozen, "ds_tensor", frozen)
                target.copy_(source)
        self._reference_moved = True

    def connect(self, client: WeightClient, transfer: TransferSetup) -> None:
        """Joins the samplers' transfer group; every rank calls it, rank 0 sends."""
        from rayalign.engines.vllm_backend.sender import WeightSender

        self._sender = WeightSender(self, client, transfer, rank=self._learner.rank.rank)

    def sync(self) -> WeightReport:
        """Sends the present weights to the samplers and says what was sent; every rank calls it."""
        if self._sender is None:
            raise RayalignError("sync before connect: the policy group has no samplers to send to")
        return self._sender.send()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name, tensor) of the whole policy with adapters merged, as a checkpoint names them. A collective."""
        return self._learner.weights()

    def weight_shapes(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Names, dtypes and shapes of what `weights` yields."""
        return self._learner.weight_shapes()

    def check_finite(self) -> None:
        """Raises RayalignError, on every rank, if a weight is not a finite number."""
        self._learner.check_finite()

    def save(self, folder: str) -> None:
        """Writes the policy as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint: weights, moments, reference, random numbers, version; every rank calls it."""
        root, rank = Path(folder), self._learner.rank.rank
        values = read_values(root / STATE / "trained.json")
        self.version = values["version"]
        self._learner.restore(root, "policy")
        if values["reference_moved"]:
            shards = sorted((root / STATE).glob("reference-*.safetensors"))
            tensors = {name: tensor for path in shards for name, tensor in read_tensors(path).items()}
            load_frozen(self._plain_reference, tensors, self._learner_config)
            self._reference_moved = True
        restore_random_state(root, "policy", rank)

    def _snapshot(self) -> Snapshot:
        rank, policy = self._learner.rank, self._policy
        weights = self._learner.host_weights()
        own = Snapshot()
        if self._reference_moved:
            frozen = enumerate(frozen_tensors(self._plain_reference, self._learner_config))
            own.tensors[f"{STATE}/reference-{rank.rank}"] = {
                name: tensor.cpu().clone() for place, (name, tensor) in frozen if place % rank.world_size == rank.rank
            }
        if rank.rank == 0:
            own.values[f"{STATE}/trained"] = {"version": self.version, "reference_moved": self._reference_moved}
            own.models["policy"] = lambda folder: policy.save(folder, weights)
        return joined(self._learner.snapshot("policy"), random_state("policy", rank.rank), own)

    @property
    def _plain_reference(self) -> Any:
        return self._reference.module if self._learner_config.zero_stage == 3 else self._reference

    def _logprobs(self, sequences: Sequences) -> torch.Tensor:
        return self._gathered_logprobs(sequences, lambda engine, batch: engine(batch, temperature=self._temperature)[0])

    def _reference_logprobs(self, sequences: Sequences) -> torch.Tensor:
        if self._policy.has_adapter:
            with self._policy.without_adapter():
                return self._logprobs(sequences)
        return self._gathered_logprobs(
            sequences, lambda _, batch: self._reference(batch, temperature=self._temperature)[0]
        )

    def _gathered_logprobs(self, sequences: Sequences, function: Any) -> torch.Tensor:
        """[T] log-probs of all response tokens in the batch's order, each computed by the rank whose share it is."""
        return self._gathered(sequences, self._learner.map(sequences, function))

    def _gathered(self, sequences: Sequences, shares: Sequence[tuple[np.ndarray, torch.Tensor]]) -> torch.Tensor:
        """[T] numbers of all response tokens in the batch's order, from every rank's (rows, numbers)."""
        own = [(rows, values.float().cpu().numpy()) for rows, values in shares]
        flat = np.empty(sequences.num_response_tokens, dtype=np.float32)
        for part in self._learner.all_gather(own):
            for rows, values in part:
                flat[token_places(sequences.response_lengths, rows)] = values
        return torch.from_numpy(flat)
