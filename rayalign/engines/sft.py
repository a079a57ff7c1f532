"""Maximum likelihood on demonstrations: the forward KL of all the papers (AfD eq. 2.1), on the same learner."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rayalign.engines.checkpointed import Checkpointed, joined, random_state, restore_random_state
from rayalign.engines.learner import Learner, LossOutput, init_distributed, local_device, seed_everything
from rayalign.models.batch import TokenBatch
from rayalign.models.policy import PolicyModel
from rayalign.objectives.likelihood import negative_log_likelihood
from rayalign.ports import SftSetup
from rayalign.storage.snapshot import Snapshot
from rayalign.telemetry.metrics import Mean, Metrics, Sum
from rayalign.types import Sequences


class SftEngine(Checkpointed):
    """One rank of supervised fine-tuning. The loss is nats a token, averaged over all response tokens of a step."""

    def __init__(self, setup: SftSetup) -> None:
        init_distributed()
        seed_everything(setup.seed)
        device = local_device()
        self._policy = PolicyModel.load(setup.path, setup.model, setup.learner, scratch=setup.scratch).to(device)
        self._learner = Learner(
            self._policy, setup.optimizer, setup.learner, total_steps=setup.total_steps, device=device
        )

    def fit(self, sequences: Sequences) -> Metrics:
        """One optimiser step on these demonstrations."""
        metrics = self._learner.step(sequences, _nll, denominator=sequences.num_response_tokens)
        return metrics | {"num_response_tokens": Sum(sequences.num_response_tokens)}

    def load_state(self, folder: str) -> None:
        """Goes on from a checkpoint; every rank calls it."""
        self._learner.restore(Path(folder), "policy")
        restore_random_state(Path(folder), "policy", self._learner.rank.rank)

    def _snapshot(self) -> Snapshot:
        rank, model = self._learner.rank.rank, self._policy
        weights = self._learner.host_weights()
        models = {"policy": lambda folder: model.save(folder, weights)} if rank == 0 else {}
        return joined(self._learner.snapshot("policy"), random_state("policy", rank), Snapshot(models=models))

    def all_gather(self, value: Any) -> list[Any]:
        """One small value from each rank, in rank order."""
        return self._learner.all_gather(value)

    def save(self, folder: str) -> None:
        """Writes the model as a Hugging Face folder (rank 0); every rank calls it."""
        self._learner.save(Path(folder))


def _nll(model: Any, batch: TokenBatch) -> LossOutput:
    policy_logprobs, _ = model(batch)
    loss_sum = negative_log_likelihood(policy_logprobs)
    return LossOutput(loss_sum, {"nll_token": Mean(float(loss_sum.detach()), policy_logprobs.numel())})
