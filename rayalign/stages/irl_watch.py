"""Watching the alternation: canary, metrics, and IRL health where it shows (held-out demonstrations, fresh samples)."""

from __future__ import annotations

import numpy as np

from rayalign.config.stages import IrlStage
from rayalign.data.tokenize import prompts_of
from rayalign.errors import SyncError
from rayalign.stages.context import RunContext
from rayalign.stages.golden import golden_scores, rank_accuracy
from rayalign.stages.groups import StoredRollouts
from rayalign.stages.irl_setup import IrlGroups
from rayalign.telemetry.clock import Clock
from rayalign.telemetry.metrics import Last, Mean, Metrics, prefixed, values
from rayalign.types import Sequences

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # mean nats a token between vLLM and the trainer, same weights
CANARY_PROMPTS = 8
CANARY_TOKENS = 16
PROBE_SAMPLES = 2  # for each held-out demonstration's prompt


class IrlWatch:
    """Measures one `irl` stage, and stops it when sampler and policy part."""

    def __init__(self, context: RunContext, stage: IrlStage, groups: IrlGroups) -> None:
        self._context, self._stage, self._groups = context, stage, groups
        self.clock = Clock()
        self._busy_s = {workers.role: 0.0 for workers in self._workers()}
        self._round = self._step = 0
        self._probe = _probe(groups.demonstrations.heldout, stage.probe_size)
        self._last_probe_scores: np.ndarray | None = None

    def check_canary(self) -> None:
        """Compares log-probs of sampler and policy on a few fresh samples. Raises SyncError above the tolerance."""
        prompts = self._groups.prompts.take(np.arange(min(CANARY_PROMPTS, len(self._groups.prompts))))
        length = min(CANARY_TOKENS, self._stage.sampling.max_new_tokens)
        sampling = self._stage.sampling.model_copy(update={"max_new_tokens": length})
        rollouts = self._groups.rollout.generate(prompts, sampling, num_per_prompt=1, seed=self._step)
        found = values(self._groups.policy.mismatch(rollouts))
        self._context.tracker.log(self._stage.name, self._round, self._step, {f"canary/{k}": v for k, v in found.items()})
        tolerance = self._stage.canary_tolerance or TOLERANCE[self._context.config.model.dtype]
        if not found["mismatch_mean"] <= tolerance:
            raise SyncError(
                f"sampler and policy v{self._groups.policy.version} differ by {found['mismatch_mean']:.2g} nats a token "
                f"(at most {found['mismatch_max']:.2g}; canary_tolerance {tolerance:g}): the weights did not arrive "
                "as they were sent, or vLLM computes this model differently from transformers"
            )

    def log_round(self, round_number: int, metrics: Metrics) -> None:
        """The reward's learning of one round, which has begun with it."""
        self._round = round_number
        self._context.tracker.log(self._stage.name, round_number, self._step, prefixed(metrics, "reward"))

    def log_step(self, round_number: int, batch: StoredRollouts, metrics: Metrics) -> dict[str, float]:
        """One policy step, with where its time went; the canary when it is due. Returns what the bar shows."""
        num_tokens = sum(stored.summary.num_response_tokens for stored in batch)
        generate_s = max(stored.summary.generate_s for stored in batch)  # replicas draw at the same time
        for phase in ("score", "policy_update"):
            self.clock.tokens(phase, num_tokens)
        for workers in self._workers():
            self.clock.busy(workers.role, workers.busy_s - self._busy_s[workers.role])
            self._busy_s[workers.role] = workers.busy_s
        lag = self._groups.policy.version - 1 - min(stored.summary.policy_version for stored in batch)
        record = metrics | self.clock.lap()
        record |= {"staleness": Last(lag), "tokens_per_s/generate": Mean(num_tokens, generate_s)}
        self._context.tracker.log(self._stage.name, round_number, self._step, record)
        self._step += 1
        if self._step % self._stage.canary_every == 0:
            self.check_canary()
        found = values(metrics)
        shown = {"reward": "policy/reward_mean", "kl": "policy/kl_policy_to_ref", "length": "policy/length_mean"}
        return {name: found[key] for name, key in shown.items() if key in found}

    def log_start(self) -> None:
        """What the policy is worth on held-out demonstrations before the first round; there is no reward yet."""
        if len(self._probe):
            self._log_health(0, self._policy_health(self._probe_samples()))

    def log_health(self, round_number: int) -> None:
        """What reward and policy are worth on demonstrations that neither has seen."""
        if len(self._probe):
            agent = self._probe_samples()
            self._log_health(round_number, self._policy_health(agent) | self._reward_health(agent))

    def _log_health(self, round_number: int, metrics: Metrics) -> None:
        self._context.tracker.log(self._stage.name, round_number, self._step, prefixed(metrics, "health"))

    def _probe_samples(self) -> Sequences:
        stored = self._groups.rollout.generate(
            prompts_of(self._probe),
            self._stage.sampling,
            num_per_prompt=PROBE_SAMPLES,
            seed=self._groups.seed_of("probe", 0),
        )
        return self._groups.rollout.fetch(stored).sequences

    def _policy_health(self, agent: Sequences) -> Metrics:
        metrics: Metrics = {
            "ended_frac": Mean(float(agent.ended.sum()), len(agent)),
            "length_mean": Mean(float(agent.response_lengths.sum()), len(agent)),
            **prefixed(self._groups.policy.negative_log_likelihood(self._probe), "demo"),
        }
        if self._stage.golden:
            golden = golden_scores(self._stage.golden, self._context.template(), agent)
            metrics["golden_mean"] = Mean(float(golden.sum()), len(golden))
        return metrics

    def _reward_health(self, agent: Sequences) -> Metrics:
        demo_scores = self._groups.reward.score_sequences(self._probe)
        agent_scores = self._groups.reward.score_sequences(agent)
        wins, pairs = _wins(demo_scores, self._probe.prompt_ids, agent_scores, agent.prompt_ids)
        metrics: Metrics = {
            "demo_accuracy_heldout": Mean(wins, pairs),
            "margin_demo_minus_agent": Last(float(demo_scores.mean() - agent_scores.mean())),
        }
        if self._last_probe_scores is not None:
            metrics["probe_drift"] = Last(float(np.abs(demo_scores - self._last_probe_scores).mean()))
        self._last_probe_scores = demo_scores
        if self._stage.golden:
            golden = golden_scores(self._stage.golden, self._context.template(), agent)
            by_prompt = rank_accuracy(agent_scores, golden, agent.prompt_ids)
            metrics |= {"rank_accuracy_policy": Mean(float(by_prompt.sum()), len(by_prompt))} if len(by_prompt) else {}
        return metrics

    def _workers(self) -> list:
        return [self._groups.rollout.workers, self._groups.reward.workers, self._groups.policy.workers]


def _probe(heldout: Sequences, size: int) -> Sequences:
    return heldout.take(np.arange(min(size, len(heldout))))


def _wins(
    demo_scores: np.ndarray, demo_ids: np.ndarray, agent_scores: np.ndarray, agent_ids: np.ndarray
) -> tuple[float, int]:
    """How often a demonstration scores above a sample for the same prompt (ties half), of how many pairs."""
    margins = (demo_scores[:, None] - agent_scores[None, :])[demo_ids[:, None] == agent_ids[None, :]]
    return float(((np.sign(margins) + 1) / 2).sum()), len(margins)
