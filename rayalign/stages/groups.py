"""The three groups as stages speak to them: what is asked of every worker, and what comes back as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayalign.config.stage_base import SamplingConfig
from rayalign.errors import SyncError, WorkerLost
from rayalign.ports import Pending, PolicyWorker, RewardWorker, RolloutWorker, Workers
from rayalign.telemetry.metrics import Metrics
from rayalign.types import Ragged, Rollout, Scores, Sequences, Stored, TokenizedPrompts, WeightReport

StoredRollouts = list[Stored[Rollout]]
StoredScores = list[Stored[Scores]]
MAX_UNMOVED = 5  # syncs in a row that may leave the weights as they were


@dataclass
class PendingRollouts:
    """Samples being drawn."""

    _pending: Pending[Stored[Rollout]]
    arguments: list[tuple[Any, ...]]  # of each worker
    _group: RolloutGroup
    replicas: list[int]  # which of its kind each worker is: the first, or the n-th that took its place
    _drawn: StoredRollouts | None = None

    def result(self) -> StoredRollouts:
        """One stored rollout a worker, in the order of the prompts; waits the first time.

        The share of a replica that is lost is drawn again by the one that takes its place, so that every prompt is
        sampled as often as it was asked for.
        """
        if self._drawn is None:
            try:
                self._drawn = self._pending.result()
            except WorkerLost as loss:
                self._drawn = self._group.drawn_again(loss, self)
            self._group.under_way.remove(self)
            self._group.sleep()
        return self._drawn

    def survivors(self) -> list[Stored[Rollout] | None]:
        """Waits for the replicas that live; one stored rollout a worker, None of one that is lost."""
        return self._pending.survivors()


class RolloutGroup:
    """Draws samples on all replicas; each takes its share of the prompts.

    Colocated with the other groups, the replicas sleep (vLLM's sleep mode) from the end of a generation until they are
    needed again, so that the trainers have the GPUs to themselves.
    """

    def __init__(
        self,
        workers: Workers[RolloutWorker],
        *,
        colocated: bool = False,
        max_restarts: int = 0,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.workers = workers
        self.renew: Callable[[], None] | None = None  # gives all replicas the weights that they should hold
        self._colocated, self._asleep = colocated, False
        self._restarts_left, self._tell = max_restarts, tell
        self._replicas = [0] * len(workers)
        self.under_way: list[PendingRollouts] = []

    def submit(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> PendingRollouts:
        """Starts drawing; the samples carry the version that the replicas hold."""
        self.wake_up()
        shares = np.array_split(np.arange(len(prompts)), min(len(self.workers), len(prompts)))
        arguments = [(prompts.take(rows), sampling, num_per_prompt, seed) for rows in shares]
        calls = self.workers.submit(_generate, arguments, phase="generate")
        pending = PendingRollouts(calls, arguments, self, list(self._replicas))
        self.under_way.append(pending)
        return pending

    def drawn_again(self, loss: WorkerLost, pending: PendingRollouts) -> StoredRollouts:
        """Replaces the replicas that drew nothing, gives all the present weights, and draws what is missing.

        Raises `loss` where that was done too often.
        """
        drawn, arguments = pending.survivors(), pending.arguments
        missing = [i for i, found in enumerate(drawn) if found is None]
        dead = [i for i in missing if pending.replicas[i] == self._replicas[i]]  # the others were replaced since
        if dead:
            self._replace(dead, loss, pending)
        lost = [arguments[i] for i in missing]
        again = self.workers.submit(_generate, lost, phase="generate", only=missing).result()
        for i, found in zip(missing, again, strict=True):
            drawn[i] = found
        return [found for found in drawn if found is not None]

    def _replace(self, dead: list[int], loss: WorkerLost, pending: PendingRollouts) -> None:
        if self.renew is None or self._restarts_left < len(dead):
            raise loss
        self._restarts_left -= len(dead)
        left = f"{self._restarts_left} more replicas may be replaced"
        self._tell(f"warning: {loss}; a new replica takes its place and draws its share ({left})")
        self.workers.replace(dead)
        for i in dead:
            self._replicas[i] += 1
        for other in self.under_way:  # weights never wait for a generation on their deadline
            if other is not pending:
                other.survivors()
        self.renew()

    def generate(
        self, prompts: TokenizedPrompts, sampling: SamplingConfig, *, num_per_prompt: int, seed: int
    ) -> StoredRollouts:
        """As `submit`, waiting for all."""
        return self.submit(prompts, sampling, num_per_prompt=num_per_prompt, seed=seed).result()

    def wake_up(self) -> None:
        """Before generating or taking weights; nothing where the replicas do not sleep."""
        if self._asleep:
            self.workers.submit(_wake_up, [()] * len(self.workers), phase="wake up").result()
            self._asleep = False

    def sleep(self) -> None:
        """Leaves the GPUs to the trainers, if they share them."""
        if self._colocated and not self._asleep:
            self.workers.submit(_sleep, [()] * len(self.workers), phase="sleep").result()
            self._asleep = True

    def fetch(self, rollouts: StoredRollouts) -> Rollout:
        """Brings small rollouts here, as one; for evaluation and probes, never for training."""
        parts = [self.workers.fetch(stored) for stored in rollouts]
        return Rollout(
            Sequences.concatenate([p.sequences for p in parts]),
            type(parts[0].sampler_logprobs).concatenate([p.sampler_logprobs for p in parts]),
            min(p.policy_version for p in parts),
            max(p.generate_s for p in parts),
        )

    def load_checkpoint(self, path: str) -> None:
        """All replicas take the weights of a folder, as version 0."""
        self.renew = lambda: self.load_checkpoint(path)
        self.wake_up()
        self.workers.submit(_load, [(path,)] * len(self.workers), phase="load a checkpoint").result()

    def reports(self) -> list[WeightReport]:
        """What each replica holds."""
        return self.workers.submit(_report, [()] * len(self.workers), phase="sync: report").result()


class RewardGroup:
    """Learns and scores; every rank is given the whole batch and takes its share."""

    def __init__(self, workers: Workers[RewardWorker]) -> None:
        self.workers = workers

    def update(self, rollouts: StoredRollouts) -> Metrics:
        """One round of reward learning; rank 0's metrics are the group's."""
        return _on_all(self.workers, _update_reward, (rollouts,), "reward update")[0]

    def score(self, rollouts: StoredRollouts) -> StoredScores:
        """Scores of all samples, a shard from each rank."""
        return _on_all(self.workers, _score, (rollouts,), "score")

    def score_sequences(self, sequences: Sequences) -> np.ndarray:
        """[B] scores of stored sequences, brought here."""
        return self.scores_of(sequences).in_order()

    def scores_of(self, sequences: Sequences) -> Scores:
        """As `score_sequences`, in the order of `rows`, with the rewards of tokens where the reward gives any."""
        shards = _on_all(self.workers, _score_sequences, (sequences,), "score")
        found = [self.workers.fetch(shard) for shard in shards]
        dense = [one.token_values for one in found if one.token_values is not None]
        return Scores(
            np.concatenate([one.rows for one in found]),
            np.concatenate([one.values for one in found]),
            max(one.reward_version for one in found),
            Ragged.concatenate(dense) if len(dense) == len(found) else None,
        )

    def save(self, folder: str) -> None:
        """Writes the reward model."""
        _on_all(self.workers, _save, (folder,), "save the reward")


class TrainedGroup:
    """A policy under training: sends it to the samplers, checking what arrived."""

    def __init__(
        self, workers: Workers[Any], rollout: RolloutGroup | None, connect: Callable[[], None] | None = None
    ) -> None:
        """`connect` joins policy and replicas for the transfer of weights; here, and again where a replica is replaced."""
        self.workers, self._connect = workers, connect
        if rollout is not None and connect is not None:
            connect()
            rollout.renew = self._renew
        self.version = 0
        self._rollout = rollout
        self._digest = ""
        self._unmoved = 0

    def sync(self) -> None:
        """Sends the weights to all replicas. Raises SyncError unless each reports this version and these weights."""
        if self._rollout is None:
            raise SyncError("there are no samplers to send the policy to")
        self._rollout.wake_up()
        sent: WeightReport = _on_all(self.workers, _sync, (), f"sync v{self.version}")[0]
        reports = self._rollout.reports()
        held = {(r.version, r.digest) for r in reports}
        if len(held) > 1:
            raise SyncError(f"after the sync of policy v{self.version} replicas hold different weights: {sorted(held)}")
        report = reports[0]
        if report.version != self.version:
            raise SyncError(f"after the sync of policy v{self.version} the replicas hold v{report.version}")
        if sent.digest and report.digest != sent.digest:
            raise SyncError(f"policy v{self.version} sent weights {sent.digest}, the replicas hold {report.digest}")
        if not sent.digest:
            self._check_moved(report.digest)
        self._digest = report.digest

    def _renew(self) -> None:
        assert self._connect is not None
        self._connect()
        self.sync()

    def _check_moved(self, digest: str) -> None:
        """Where the sender makes no checksum, weights that never change are the sign of a sync that delivers nothing.

        One update may rightly change nothing: equal scores have no gradient, a small step is lost in bfloat16.
        """
        self._unmoved = self._unmoved + 1 if digest == self._digest else 0
        if self._unmoved >= MAX_UNMOVED:
            raise SyncError(f"{self._unmoved} updates up to policy v{self.version} left the replicas' weights as they were")

    def mismatch(self, rollouts: StoredRollouts) -> Metrics:
        """Nats a token between the samplers' log-probs and the policy's."""
        return _on_all(self.workers, _mismatch, (rollouts,), "canary")[0]

    def negative_log_likelihood(self, sequences: Sequences) -> Metrics:
        """Nats a demonstration."""
        return _on_all(self.workers, _nll, (sequences,), "likelihood")[0]

    def move_reference(self) -> None:
        """The present policy becomes the reference."""
        _on_all(self.workers, _move_reference, (), "move the reference")

    def save(self, folder: str) -> None:
        """Writes the policy."""
        _on_all(self.workers, _save, (folder,), "save the policy")


class PolicyGroup(TrainedGroup):
    """Improves the policy on scored samples."""

    def improve(self, rollouts: StoredRollouts, scores: StoredScores) -> Metrics:
        """One update; `version` advances by one."""
        metrics = _on_all(self.workers, _improve, (rollouts, scores), f"policy update v{self.version}")[0]
        self.version += 1
        return metrics

    def start_critic(self, path: str) -> None:
        """The critic begins anew from a model's folder."""
        _on_all(self.workers, _start_critic, (path,), "start the critic")


class ImplicitGroup(TrainedGroup):
    """Takes steps on the policy's implicit reward."""

    def begin_round(self, round_number: int, rows: np.ndarray, rollouts: StoredRollouts) -> int:
        """Hands over the round's demonstrations (by row) and samples; how many steps the round has."""
        return _on_all(self.workers, _begin_round, (round_number, rows, rollouts), "begin a round")[0]

    def fit_step(self, rollouts: StoredRollouts) -> Metrics:
        """One step; `version` advances by one."""
        metrics = _on_all(self.workers, _fit_step, (rollouts,), f"policy update v{self.version}")[0]
        self.version += 1
        return metrics


def _on_all(workers: Workers[Any], method: Any, arguments: tuple[Any, ...], phase: str) -> list[Any]:
    return workers.submit(method, [arguments] * len(workers), phase=phase).result()


# What a worker is asked to do, as functions, so that nothing is called by a string.


def _generate(
    worker: RolloutWorker, prompts: TokenizedPrompts, sampling: SamplingConfig, num_per_prompt: int, seed: int
) -> Any:
    return worker.generate(prompts, sampling, num_per_prompt=num_per_prompt, seed=seed)


def _sleep(worker: RolloutWorker) -> None:
    worker.sleep()


def _wake_up(worker: RolloutWorker) -> None:
    worker.wake_up()


def _load(worker: RolloutWorker, path: str) -> None:
    worker.load_checkpoint(path, version=0)


def _report(worker: RolloutWorker) -> WeightReport:
    return worker.weight_report()


def _update_reward(worker: RewardWorker, rollouts: Sequence[Rollout]) -> Any:
    return worker.update(rollouts)


def _score(worker: RewardWorker, rollouts: Sequence[Rollout]) -> Scores:
    return worker.score(rollouts)


def _score_sequences(worker: RewardWorker, sequences: Sequences) -> Scores:
    return worker.score_sequences(sequences)


def _improve(worker: PolicyWorker, rollouts: Sequence[Rollout], scores: Sequence[Scores]) -> Any:
    return worker.improve(rollouts, scores)


def _begin_round(worker: Any, round_number: int, rows: np.ndarray, rollouts: Sequence[Rollout]) -> int:
    return int(worker.begin_round(round_number, rows, rollouts))


def _fit_step(worker: Any, rollouts: Sequence[Rollout]) -> Any:
    return worker.fit_step(rollouts)


def _start_critic(worker: PolicyWorker, path: str) -> None:
    worker.start_critic(path)


def _sync(worker: PolicyWorker) -> WeightReport:
    return worker.sync()


def _mismatch(worker: PolicyWorker, rollouts: Sequence[Rollout]) -> Any:
    return worker.mismatch(rollouts)


def _nll(worker: PolicyWorker, sequences: Sequences) -> Any:
    return worker.negative_log_likelihood(sequences)


def _move_reference(worker: PolicyWorker) -> None:
    worker.move_reference()


def _save(worker: RewardWorker | PolicyWorker, folder: str) -> None:
    worker.save(folder)
