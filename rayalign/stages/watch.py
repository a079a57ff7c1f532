"""Watching a policy learn: canary, metrics, alarms, and health where it shows (held-out demonstrations, fresh samples)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

import numpy as np

from rayalign.config.loops import LoopStage, SampledStage
from rayalign.data.tokenize import prompts_of
from rayalign.engines.scored_batch import shape_metrics
from rayalign.errors import SyncError
from rayalign.stages.context import RunContext
from rayalign.stages.golden import golden_scores, rank_accuracy
from rayalign.stages.groups import RolloutGroup, StoredRollouts, TrainedGroup
from rayalign.stages.inputs import DemonstrationSplit
from rayalign.stages.loop_setup import LoopGroups
from rayalign.stages.probes import COLUMNS, Probe, forget_probes, keep_probe, table_rows
from rayalign.storage.jsonl import add_line, drop_lines
from rayalign.storage.run_folder import ALARMS_FILE, ROUNDS_FILE
from rayalign.telemetry.alarms.rule import Rule
from rayalign.telemetry.clock import Clock
from rayalign.telemetry.hacking import HackingWatch, implicit_rules, loop_rules
from rayalign.telemetry.metrics import Last, Mean, Metric, Metrics, prefixed, values
from rayalign.telemetry.shown import key_numbers
from rayalign.types import Ragged, Rollout, Scores, Sequences, TokenizedPrompts

TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}  # mean nats a token between vLLM and the trainer, same weights
CANARY_PROMPTS = 8
CANARY_TOKENS = 16
BothScores = tuple[Scores | None, Scores | None]  # of demonstrations, of samples
PROBE_SAMPLES = 2  # for each held-out demonstration's prompt


class Sampled(Protocol):
    """A policy and its samplers, if there are any, with the data they work on."""

    @property
    def rollout(self) -> RolloutGroup | None:
        """None where the policy is never sampled."""

    @property
    def policy(self) -> TrainedGroup:
        """The policy under training."""

    @property
    def demonstrations(self) -> DemonstrationSplit | None:
        """None where the stage needs none and has none."""

    @property
    def prompts(self) -> TokenizedPrompts:
        """That the policy is sampled on."""

    def seed_of(self, purpose: str, number: int) -> int:
        """A seed of its own for each time samples are drawn."""


class Watch:
    """Measures the policy of one stage, and stops it when sampler and policy part."""

    def __init__(self, context: RunContext, stage: SampledStage, groups: Sampled) -> None:
        self._context, self._stage, self._sampled = context, stage, groups
        self._round = self._step = 0
        self.newest: dict[str, float] = {}  # of every metric of this round
        self._probe = _probe(groups.demonstrations, stage.probe_size)
        self.hacking = HackingWatch(_rules(stage), early_stop=stage.watch.early_stop)
        self._alarms = context.folder / ALARMS_FILE  # as told, for whoever looks later
        self._probes = context.folder / ROUNDS_FILE

    @property
    def step(self) -> int:
        """How many steps were logged."""
        return self._step

    def state(self) -> dict[str, Any]:
        """Plain values; `restore` goes on from here."""
        return {"round": self._round, "step": self._step, "newest": self.newest, "hacking": self.hacking.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""
        self._round, self._step, self.newest = state["round"], state["step"], dict(state["newest"])
        self.hacking.restore(state["hacking"])
        told = self.hacking.alarms
        drop_lines(self._alarms, lambda old: _is_of({"stage": self._stage.name}, old) and old.get("name") not in told)
        forget_probes(self._probes, self._stage.name, lambda old: old.get("step", 0) > self._step)

    def check_canary(self, *, log: bool = True) -> None:
        """Compares log-probs of sampler and policy on a few fresh samples. Raises SyncError above the tolerance."""
        rollout, prompts = self._sampled.rollout, self._sampled.prompts
        if rollout is None:
            return
        prompts = prompts.take(np.arange(min(CANARY_PROMPTS, len(prompts))))
        length = min(CANARY_TOKENS, self._stage.sampling.max_new_tokens)
        sampling = self._stage.sampling.model_copy(update={"max_new_tokens": length})
        rollouts = rollout.generate(prompts, sampling, num_per_prompt=1, seed=self._step)
        metrics = self._sampled.policy.mismatch(rollouts)
        found = values(metrics)
        if log:
            self._log(self._round, prefixed(metrics, "canary"))
        tolerance = self._stage.canary_tolerance or TOLERANCE[self._context.config.model.dtype]
        if not found["mismatch_mean"] <= tolerance:
            raise SyncError(
                f"sampler and policy v{self._sampled.policy.version} differ by {found['mismatch_mean']:.2g} nats a token "
                f"(at most {found['mismatch_max']:.2g}; canary_tolerance {tolerance:g}): the weights did not arrive "
                "as they were sent, or vLLM computes this model differently from transformers"
            )

    def begin_round(self, round_number: int) -> None:
        """What was measured in the last one says nothing of this one."""
        self._round, self.newest = round_number, {}

    def log(self, round_number: int, metrics: Metrics) -> None:
        """One step."""
        self._log(round_number, metrics)
        self._step += 1

    def should_stop(self, round_number: int) -> bool:
        """Whether the stage is to end here, at an alarm (watch.early_stop); says so."""
        if not self.hacking.should_stop():
            return False
        line = f"stage {self._stage.name} stops early in round {round_number + 1}: {', '.join(self.hacking.alarms)}"
        self._context.progress.say(f"warning: {line} (watch.early_stop)")
        return True

    def _log(self, round_number: int, metrics: Mapping[str, Metric]) -> None:
        """Writes a record, with what the alarms measure on it; tells those that trip for the first time."""
        found = values(metrics)
        self.newest |= found
        measures, lines = self.hacking.observe(round_number, found)
        measures["watch/num_alarms"] = len(self.hacking.alarms)
        self._context.tracker.log(self._stage.name, round_number, self._step, {**metrics, **measures})
        for name, line in lines.items():
            self._context.progress.say(f"warning: stage {self._stage.name}, round {round_number + 1}: {line}")
            told = {"stage": self._stage.name, "round": round_number, "step": self._step, "name": name, "line": line}
            add_line(self._alarms, told)

    def log_start(self) -> None:
        """What the policy is worth on held-out demonstrations before the first round; there is no reward yet."""
        drop_lines(self._alarms, partial(_is_of, {"stage": self._stage.name}))
        forget_probes(self._probes, self._stage.name, lambda old: True)
        if len(self._probe):
            agent = self._probe_samples()
            self._log(0, prefixed(self._policy_health(agent), "health"))
            self._keep(0, agent)

    def log_health(self, round_number: int) -> None:
        """What the policy is worth on demonstrations that it has not seen."""
        if len(self._probe):
            agent = self._probe_samples()
            metrics, scores = self._health(agent)
            self._log(round_number, prefixed(metrics, "health"))
            self._keep(round_number + 1, agent, scores)

    def _health(self, agent: Rollout | None) -> tuple[Metrics, BothScores]:
        """Metrics, and the scores of demonstrations and samples, where there is a reward."""
        return self._policy_health(agent), (None, None)

    def _keep(self, rounds_done: int, agent: Rollout | None, scores: BothScores = (None, None)) -> None:
        if agent is not None:
            probe, stage = Probe(self._probe, agent.sequences, *scores), self._stage.name
            template = self._context.template()
            prompts = keep_probe(self._probes, template, probe, stage=stage, rounds_done=rounds_done, step=self._step)
            self._context.tracker.table(self._stage.name, self._step, "samples", COLUMNS, table_rows(prompts))

    def _probe_samples(self) -> Rollout | None:
        if self._sampled.rollout is None:
            return None
        stored = self._sampled.rollout.generate(
            prompts_of(self._probe),
            self._stage.sampling,
            num_per_prompt=PROBE_SAMPLES,
            seed=self._sampled.seed_of("probe", 0),
        )
        return self._sampled.rollout.fetch(stored)

    def _policy_health(self, agent: Rollout | None) -> Metrics:
        metrics: Metrics = prefixed(self._sampled.policy.negative_log_likelihood(self._probe), "demo")
        if agent is None:
            return metrics
        logprobs = agent.sampler_logprobs.values
        metrics |= {"entropy": Mean(-float(logprobs.sum()), len(logprobs)), **shape_metrics(agent.sequences)}
        if self._stage.golden:
            golden = golden_scores(self._stage.golden, self._context.template(), agent.sequences)
            metrics["golden_mean"] = Mean(float(golden.sum()), len(golden))
        return metrics


class LoopWatch(Watch):
    """Measures one `irl` or `rl` stage: its steps, and the reward beside the policy."""

    def __init__(self, context: RunContext, stage: LoopStage, groups: LoopGroups) -> None:
        super().__init__(context, stage, groups)
        self._every, self._groups = stage.canary_every, groups
        self.clock = Clock()
        self._busy_s = {workers.role: 0.0 for workers in self._workers()}
        self._last_probe_scores: np.ndarray | None = None

    def state(self) -> dict[str, Any]:
        """As Watch, with what the next round's drift is measured from."""
        last = self._last_probe_scores
        return super().state() | {"probe_scores": None if last is None else last.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken."""
        super().restore(state)
        last = state["probe_scores"]
        self._last_probe_scores = None if last is None else np.array(last, dtype=np.float32)

    def log_round(self, round_number: int, metrics: Metrics) -> None:
        """The reward's learning of one round."""
        found = prefixed(metrics, "reward")
        self.newest |= values(found)
        self._context.tracker.log(self._stage.name, round_number, self._step, found)

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
        self._log(round_number, record)
        self._step += 1
        if self._step % self._every == 0:
            self.check_canary()
        return key_numbers(self.newest)

    def _health(self, agent: Rollout | None) -> tuple[Metrics, BothScores]:
        metrics = self._policy_health(agent)
        if agent is None:
            return metrics, (None, None)
        reward = self._groups.reward
        demo_scores, agent_scores = reward.scores_of(self._probe), reward.scores_of(agent.sequences)
        found = self._reward_health(agent.sequences, demo_scores.in_order(), agent_scores.in_order())
        return metrics | found, (demo_scores, agent_scores)

    def _reward_health(self, agent: Sequences, demo_scores: np.ndarray, agent_scores: np.ndarray) -> Metrics:
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


def _is_of(own: Mapping[str, str], line: Mapping[str, Any]) -> bool:
    return all(line.get(name) == value for name, value in own.items())


def _rules(stage: SampledStage) -> list[Rule]:
    if not isinstance(stage, LoopStage):
        return implicit_rules(stage.watch)
    moving = stage.improve.reference == "round"
    return loop_rules(stage.watch, moving_reference=moving, stale=stage.max_staleness > 0)


def _probe(split: DemonstrationSplit | None, size: int) -> Sequences:
    if split is None:
        nothing = np.empty(0, dtype=np.int64)
        return Sequences(Ragged.from_list([]), nothing, nothing, nothing.astype(bool))
    return split.heldout.take(np.arange(min(size, len(split.heldout))))


def _wins(
    demo_scores: np.ndarray, demo_ids: np.ndarray, agent_scores: np.ndarray, agent_ids: np.ndarray
) -> tuple[float, int]:
    """How often a demonstration scores above a sample for the same prompt (ties half), of how many pairs."""
    margins = (demo_scores[:, None] - agent_scores[None, :])[demo_ids[:, None] == agent_ids[None, :]]
    return float(((np.sign(margins) + 1) / 2).sum()), len(margins)
